"""SIGTERM and SIGINT end a run at a checkpoint; the failure of one rank ends all of them, with its cause."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages
from integration_tests.harness.running import Running
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3

SAVES = {"num_epochs": 4, "save_strategy": "steps", "save_steps": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def whole(host: Host, model: Path, two_sets: list[Config], folder: Path) -> Path:
    """The run as it is when nobody stops it."""
    config = config_of(model, two_sets, folder / "whole")
    train(host, config).check()
    return config.parent / "out"


def config_of(model: Path, sets: list[Config], folder: Path, **overrides: Any) -> Path:
    """Two steps of 24 and 32 updates."""
    plain = base_config(model, sets, folder, **{**SAVES, **overrides})
    made = sdpo_config(plain, plugins=PLUGINS, auto_resume_from_checkpoints=True)
    return write_config(folder / "config.yaml", made)


def begin(host: Host, config: Path, seen: str, fault: str = "", ranks: int = 1) -> Running:
    """Start a run and wait until a file of it is there."""
    env = {"SDPO_TEST_FAULT": fault or None}
    run = host.start(["train", str(config), "--launcher", "python"], config.parent, env=env, ranks=ranks)
    assert run.wait_for((config.parent / "out" / seen).exists), run.logs[0].read_text()[-3000:]
    return run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_ends_at_a_checkpoint(
    host: Host, model: Path, two_sets: list[Config], whole: Path, tmp_path: Path, name: str
) -> None:
    """The whole process group gets it, data loader workers too, as from a terminal or a scheduler. No save is due."""
    signum = signal.Signals[name]
    config = config_of(model, two_sets, tmp_path)
    run = begin(host, config, "step-2/checkpoint-6/sdpo_seal.json")
    run.kill(signum)
    result = run.wait()
    assert result.returncode == 128 + signum
    said = messages(result)
    assert said[0] == f"{name}: the run stops after this update, with a checkpoint. A second signal ends it at once."
    newest = max((tmp_path / "out" / "step-2").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert f"stopped by {name}: update {newest.name[11:]} of this step is in {newest}. To resume" in said[1]
    again = train(host, config).check()
    assert f"resuming step 2 from {newest}" in again.log_text
    assert apart(tmp_path / "out", whole) == 0.0


def test_checkpoint_for_a_signal_is_good_for_resume(
    host: Host, model: Path, two_sets: list[Config], whole: Path, tmp_path: Path
) -> None:
    """Also where the others hold the weights alone."""
    config = config_of(model, two_sets, tmp_path, save_only_model=True)
    # In the middle of an epoch: where one begins, a data loader worker starts, which a signal may yet end.
    run = begin(host, config, "step-2/checkpoint-12/model.safetensors")
    run.kill(signal.SIGTERM)
    assert run.wait().returncode == 143
    again = train(host, config).check()
    assert f"resuming step 2 from {tmp_path}/out/step-2/checkpoint-" in again.log_text
    assert apart(tmp_path / "out", whole) == 0.0


def test_signal_during_a_reference_pass(
    host: Host, model: Path, two_sets: list[Config], whole: Path, tmp_path: Path
) -> None:
    """Nothing is half kept; the pass is made again."""
    config = config_of(model, two_sets, tmp_path)
    run = begin(host, config, "sdpo/ledger.json", fault="slow:0.2")
    time.sleep(0.5)
    run.kill(signal.SIGTERM)
    result = run.wait()
    assert result.returncode == 143
    assert "stopped by SIGTERM: the reference pass under way will be made again." in messages(result)[-1]
    train(host, config).check()
    assert apart(tmp_path / "out", whole) == 0.0


def test_second_signal_ends_at_once(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """In an update that would take ten minutes. Within a second it is the same request, delivered twice."""
    run = begin(host, config_of(model, two_sets, tmp_path), "step-1/checkpoint-6/sdpo_seal.json", fault="hang:1:8:0")
    assert run.wait_for(partial(run.says, "hangs"))
    run.kill(signal.SIGTERM)
    time.sleep(0.2)
    run.kill(signal.SIGTERM)
    time.sleep(1.5)
    assert not run.codes()
    start = time.monotonic()
    run.kill(signal.SIGTERM)
    result = run.wait()
    assert result.returncode == 143
    assert time.monotonic() - start < 5
    assert messages(result)[-1] == "SIGTERM again: ended at once."


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Any]:
    """ZeRO-3, half the batch on each rank."""
    return {"deepspeed": str(write_zero3(folder / "zero3.json")), "micro_batch_size": 2, "num_epochs": 2}


def test_signal_to_one_rank_stops_both_after_the_same_update(
    host: Host, model: Path, two_sets: list[Config], two_ranks: dict[str, Any], tmp_path: Path
) -> None:
    """The other rank learns of the signal from this one alone; both end with the conventional status."""
    config = config_of(model, two_sets, tmp_path, **two_ranks | {"num_epochs": 4})
    run = begin(host, config, "step-1/checkpoint-6/sdpo_seal.json", ranks=2)
    os.kill(run.pids[1], signal.SIGTERM)
    result = run.wait(grace=60)
    assert set(run.codes().values()) == {143}
    assert "stopped by SIGTERM: update " in messages(result)[-1]
    again = train(host, config, ranks=2).check()
    assert f"resuming step 1 from {tmp_path}/out/step-1/checkpoint-" in again.log(0)


def test_unknown_error_of_rank_0_while_it_writes_ends_both(
    host: Host, model: Path, two_sets: list[Config], two_ranks: dict[str, Any], tmp_path: Path
) -> None:
    """Rank 1 would wait for what rank 0 was about to tell it."""
    config = config_of(model, two_sets, tmp_path, **two_ranks)
    env = {"SDPO_TEST_FAULT": "break:sdpo/reference/"}
    run = host.start(["train", str(config), "--launcher", "python"], tmp_path, env=env, ranks=2)
    result = run.wait(120, grace=60)
    assert len(run.codes()) == 2
    assert "KeyError: 'a fault of the test'" in result.log(0)
    assert "Traceback" not in result.log(1)
    assert "rank 0 stopped with an error of its own; its message says which." in result.log(1)


@pytest.mark.parametrize("rank", [0, 1])
def test_failure_of_one_rank_ends_both_and_says_why_once(
    host: Host, model: Path, two_sets: list[Config], two_ranks: dict[str, Any], tmp_path: Path, rank: int
) -> None:
    """No rank waits in a collective, and the other one's traceback does not bury the cause."""
    config = config_of(model, two_sets, tmp_path, **two_ranks)
    env = {"SDPO_TEST_FAULT": f"raise:1:8:{rank}"}
    run = host.start(["train", str(config), "--launcher", "python"], tmp_path, env=env, ranks=2)
    result = run.wait(120, grace=30)  # nobody ends the other rank from outside
    assert len(run.codes()) == 2
    assert all(code == 1 for code in run.codes().values())
    assert "KeyError: 'a fault of the test'" in result.log(rank)
    other = result.log(1 - rank)
    assert "Traceback" not in other
    assert f"sdpo_plugin: rank {1 - rank} ends because another rank did: " in other
