"""Every way a run can end: before its deadline, with the right exit code, and with nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.env import ROOT, host_env
from integration_tests.harness.fresh import TOOLS
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages
from integration_tests.harness.processes import MARK, in_sessions, left_running, marked
from integration_tests.harness.results import Result
from integration_tests.harness.running import Running
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir

DEADLINE = 90.0  # a run of these takes three seconds; one that hangs takes for ever
FAULT = "KeyError: 'a fault of the test'"
EVALUATES = {"val_set_size": 0.25, "eval_strategy": "steps", "eval_steps": 2, "eval_batch_size": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that runs share."""
    return tmp_path_factory.mktemp("endings")


def config_of(model: Path, sets: list[Config], out: Path, shared: Path, **overrides: Any) -> Path:
    """Two steps; data loader workers as the host has them, which is one."""
    plain = base_config(model, sets, out, dataset_prepared_path=str(shared / "prepared"), **overrides)
    made = sdpo_config(plain, plugins=PLUGINS, auto_resume_from_checkpoints=True)
    assert "dataloader_num_workers" not in made or "dataloader_num_workers" in overrides
    return write_config(out / "config.yaml", made)


def ends(running: Running, code: int) -> Result:
    """Assert that every rank ends by itself before the deadline, with this code, and leaves no process behind."""
    result = running.wait(DEADLINE, grace=DEADLINE)
    assert not result.timed_out, result.log_text[-3000:]
    assert set(running.codes().values()) == {code}, f"{running.codes()}\n{result.log_text[-3000:]}"
    assert left_running(partial(in_sessions, *running.pids)) == {}
    return result


# How a step, a pass, an evaluation or a file goes wrong; what the log then says; the overrides that it takes.
FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a step": ("raise:1:3:0", FAULT, {}),
    "the second step": ("raise:2:3:0", FAULT, {}),
    "a data loader worker": ("worker:3:0", "a fault of the test", {}),
    "a reference pass": ("pass:3:0", FAULT, {}),
    "an evaluation": ("evaluate:3:0", FAULT, EVALUATES),
    "an export": ("break:sdpo/staging", FAULT, {}),
    "the final save": ("break:open generation_config.json", FAULT, {}),
    "memory": ("memory:1:3:0", "CUDA out of memory", {}),
    "our own stop": ("", "sdpo_plugin: the loss of update ", {"learning_rate": 1.0e20}),
}


@pytest.mark.parametrize("workers", [None, 2], ids=["default", "two"])
@pytest.mark.parametrize("what", FAULTS)
def test_error(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path, what: str, workers: int | None
) -> None:
    """The cause is shown, the exit code is 1."""
    fault, said, overrides = FAULTS[what]
    overrides = {**overrides, **({"dataloader_num_workers": workers} if workers else {})}
    config = config_of(model, two_sets, tmp_path, folder, **overrides)
    run = host.start(["train", str(config), "--launcher", "python"], tmp_path, env={"SDPO_TEST_FAULT": fault or None})
    assert said in ends(run, 1).log_text
    if what == "the final save":
        ledger = Ledger.load(RunDir(tmp_path / "out").ledger)
        assert (ledger.finished, ledger.saved) == (True, False)


RANKS_FAULTS = {
    "a step": "raise:1:3:1",
    "a data loader worker": "worker:3:1",
    "a reference pass": "pass:3:1",
    "memory": "memory:2:2:0",
}


@pytest.mark.parametrize(("what", "workers"), [*((what, None) for what in RANKS_FAULTS), ("a step", 2)])
def test_error_on_one_of_two_ranks(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path, what: str, workers: int | None
) -> None:
    """Nobody ends the other rank from outside."""
    ranks = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2}
    config = config_of(model, two_sets, tmp_path, folder, **ranks, dataloader_num_workers=workers)
    env = {"SDPO_TEST_FAULT": RANKS_FAULTS[what]}
    result = ends(host.start(["train", str(config), "--launcher", "python"], tmp_path, env=env, ranks=2), 1)
    assert "a fault of the test" in result.log_text or "CUDA out of memory" in result.log_text


def test_rank_0_may_take_longer_over_a_checkpoint_than_a_collective_may(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path
) -> None:
    """The other rank waits for the seal of a checkpoint of many gigabytes, or on a slow disk; no watchdog ends it."""
    ranks = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2, "ddp_timeout": 15}
    config = config_of(model, two_sets, tmp_path, folder, **ranks, save_strategy="steps", save_steps=3)
    env = {"SDPO_TEST_FAULT": "wait:30:checkpoint-3/.sdpo_seal"}
    result = ends(host.start(["train", str(config), "--launcher", "python"], tmp_path, env=env, ranks=2), 0)
    assert result.seconds > 30


@pytest.mark.parametrize("workers", [None, 2])
def test_a_run_that_is_killed_leaves_no_data_loader_worker(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path, workers: int | None
) -> None:
    """No signal reaches them, and a full pipe may block them."""
    config = config_of(model, two_sets, tmp_path, folder, num_epochs=500, dataloader_num_workers=workers)
    run = host.start(["train", str(config), "--launcher", "python"], tmp_path, env={"SDPO_TEST_FAULT": "hang:1:4:0"})
    assert run.wait_for(partial(run.says, "hangs"), DEADLINE)
    assert len(in_sessions(*run.pids)) > (workers or 1)
    time.sleep(1)  # a worker fills its pipe
    os.kill(run.pids[0], signal.SIGKILL)
    assert run.wait(DEADLINE).returncode == -signal.SIGKILL
    assert left_running(partial(in_sessions, *run.pids)) == {}


# --- under the host's launchers ---

LAUNCHERS = {"accelerate": ["axolotl", "train"], "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2"]}
ON_CPU_RANKS = str(ROOT / "integration_tests" / "harness" / "cpu_launcher.py")


@contextmanager
def launched(launcher: str, config: Path, host: Host, fault: str) -> Iterator[subprocess.Popen[bytes]]:
    """`axolotl train config.yaml` as a user types it, or two ranks by torchrun; a session of its own."""
    name, *rest = LAUNCHERS[launcher]
    command = [str(TOOLS / name), *rest, *([ON_CPU_RANKS, "train"] if launcher == "torchrun" else []), str(config)]
    env = host_env(host.scratch, {"SDPO_TEST_FAULT": fault or None, MARK: str(config)})
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=config.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in marked(str(config)):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def launched_config(launcher: str, model: Path, sets: list[Config], out: Path, shared: Path, **overrides: Any) -> Path:
    """Under torchrun two ranks have to have an engine: plain DDP is another test's."""
    ranks = {"deepspeed": str(write_zero3(out / "zero3.json")), "micro_batch_size": 2}
    return config_of(model, sets, out, shared, **(ranks if launcher == "torchrun" else {}), **overrides)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_error_under_a_launcher(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path, launcher: str
) -> None:
    """The launcher reports the failure, and no process is left running."""
    config = launched_config(launcher, model, two_sets, tmp_path, folder)
    with launched(launcher, config, host, f"raise:1:3:{int(launcher == 'torchrun')}") as process:
        assert process.wait(300) == 1, (tmp_path / "log").read_text()[-3000:]
        assert left_running(partial(marked, str(config))) == {}
    assert FAULT in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("launcher", "signum"),
    [("accelerate", signal.SIGTERM), ("accelerate", signal.SIGKILL), ("torchrun", signal.SIGKILL)],
)
def test_a_run_whose_launcher_is_gone_stops_at_a_checkpoint(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tmp_path: Path, launcher: str, signum: int
) -> None:
    """No other process would end it. accelerate does not pass SIGTERM to the run; torchrun does."""
    config = launched_config(launcher, model, two_sets, tmp_path, folder, num_epochs=2000)
    with launched(launcher, config, host, "slow:0.02") as process:
        deadline = time.monotonic() + 180
        while "'loss'" not in (tmp_path / "log").read_text(errors="replace"):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        process.send_signal(signum)
        process.wait(30)
        assert left_running(partial(marked, str(config)), 60) == {}
    said = (tmp_path / "log").read_text(errors="replace")
    assert f"{launcher}, which launched this run (process {process.pid}), is gone: the run stops after this" in said
    assert "stopped by SIGTERM: update " in said
    assert list((tmp_path / "out/step-1").glob("checkpoint-*/sdpo_seal.json"))


# --- in the middle of an evaluation ---

STOPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "within a step": ("signal:8:0", {"save_strategy": "no"}),
    "where a checkpoint is due": ("signal:14:0", {"save_strategy": "steps", "save_steps": 2}),
    "best model": ("signal:8:0", {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}),
    "after the last update": ("signal:14:0", {"save_strategy": "no", "eval_strategy": "epoch", "eval_steps": None}),
    "before the first update": ("signal:20:0", {"save_strategy": "no", "eval_strategy": "epoch", "eval_steps": None}),
}


@pytest.fixture(scope="module")
def undisturbed(host: Host, model: Path, two_sets: list[Config], folder: Path) -> Callable[..., Path]:
    """Runs that nobody stops, one for all that have the same settings: their output directory, with the log beside."""
    made: dict[str, Path] = {}

    def run(**settings: Any) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            config = config_of(model, two_sets, folder / f"undisturbed-{len(made)}", folder, **settings)
            (config.parent / "log").write_text(train(host, config).check().log_text, encoding="utf-8")
            made[key] = config.parent / "out"
        return made[key]

    return run


@pytest.mark.parametrize("where", STOPPED)
def test_signal_during_an_evaluation(
    host: Host,
    model: Path,
    two_sets: list[Config],
    folder: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    where: str,
) -> None:
    """The evaluation is left, so that a launcher that kills after a while finds a checkpoint; it is made when the run
    is resumed, and the end is that of a run that nobody stopped. The checkpoint is not written anew then: a death
    meanwhile would cost it."""
    fault, overrides = STOPPED[where]
    shared = {**EVALUATES, "num_epochs": 2, "save_total_limit": 20, **overrides}
    whole = undisturbed(**shared)
    evaluations = (whole.parent / "log").read_text(encoding="utf-8").count("'eval_loss'")
    config = config_of(model, two_sets, tmp_path, folder, **shared)
    stopped = train(host, config, fault)
    assert stopped.returncode == 143, stopped.log_text[-3000:]
    said = "update 9 of this step is in " if where == "after the last update" else "update "
    said = "an evaluation under way will be made again, and step step-2 begins" if where[:6] == "before" else said
    assert f"stopped by SIGTERM: {said}" in messages(stopped)[-1]
    made = stopped.log_text.count("'eval_loss'")
    seals = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("step-*/checkpoint-*/sdpo_seal.json")}
    resumed = train(host, config).check()
    assert made + resumed.log_text.count("'eval_loss'") == evaluations
    assert {path: path.stat().st_mtime_ns for path in seals} == seals
    assert apart(tmp_path / "out", whole) == 0.0
