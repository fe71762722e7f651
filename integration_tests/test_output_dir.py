"""An output directory is not touched by a run that is refused, nor its log by other commands of the host."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, lora_config, write_config
from integration_tests.harness.fresh import run_fresh
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import run_sdpo, sdpo_config
from sdpo_plugin.run_dir.lock import RunLock
from sdpo_plugin.run_dir.paths import RunDir

# The host's Triton kernels for LoRA, which `axolotl inference` turns on by itself, need a GPU.
ON_CPU = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}


@pytest.fixture(scope="module")
def config(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a run that is finished."""
    folder = tmp_path_factory.mktemp("finished")
    made = sdpo_config(lora_config(model, two_sets, folder, **ON_CPU, val_set_size=0.25))
    run_sdpo(host, made)
    return made


@pytest.fixture
def out(config: Config, tmp_path: Path) -> Path:
    """A copy of its output directory."""
    return Path(shutil.copytree(config["output_dir"], tmp_path / "out"))


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every file, the host's log among them; closing a lock's file would release it."""

    def content(path: Path) -> str:
        return "" if path.name == "lock" else hashlib.sha256(path.read_bytes()).hexdigest()

    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, content(path)) for path in files}


def train(host: Host, config: Config, out: Path, ranks: int = 1, **overrides: Any) -> Result:
    made = {key: value for key, value in {**config, "output_dir": str(out), **overrides}.items() if value is not None}
    return host.train(write_config(out.parent / "config.yaml", made), ranks=ranks)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({}, ("holds finished steps of an earlier run (step-1, step-2)", "set auto_resume_from_checkpoints: true")),
        ({"rl_adapter_ref_model": True}, ("rl: sdpo conflicts with rl_adapter_ref_model: True",)),
        ({"partition": {"strategy": "natural"}}, ("partition: {'strategy': 'natural'} stands", "sdpo.partition?")),
        ({"resume_from_checkpoint": "/nope"}, ("resume_from_checkpoint: '/nope' does not exist",)),
    ],
    ids=["finished", "conflict", "misplaced", "no-checkpoint"],
)
def test_refused_run_leaves_every_byte(
    host: Host, config: Config, out: Path, tmp_path: Path, overrides: dict[str, Any], parts: tuple[str, ...]
) -> None:
    before = state(out)
    assert "debug.log" in before
    refused(train(host, config, out, **overrides), tmp_path / "nothing", *parts)
    assert state(out) == before


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("resumes", [True, None])
def test_run_that_another_one_holds_keeps_its_log(
    host: Host, config: Config, out: Path, tmp_path: Path, ranks: int, resumes: bool | None
) -> None:
    """On no rank."""
    lock = RunLock(RunDir(out).lock)
    try:
        before = state(out)
        result = train(host, config, out, ranks, auto_resume_from_checkpoints=resumes)
        refused(result, tmp_path / "nothing", f"output_dir: {str(out)!r} is in use by another run (process ")
        assert state(out) == before
    finally:
        lock.release()


def test_launcher_of_the_host_is_known_to_train(host: Host, config: Config, out: Path, tmp_path: Path) -> None:
    """accelerate starts `python -m axolotl.cli.train`, which has no command line of the host's own."""
    before = state(out)
    file = write_config(tmp_path / "config.yaml", {**config, "output_dir": str(out)})
    result = run_fresh(["train", str(file)], tmp_path, host.scratch)
    assert "holds finished steps of an earlier run (step-1, step-2)" in result.log_text
    assert result.returncode != 0
    assert state(out) == before


def test_other_commands_append_to_the_log(host: Host, config: Config, out: Path, tmp_path: Path) -> None:
    """The host would start it anew for each of them."""
    file = write_config(tmp_path / "config.yaml", {**config, "output_dir": str(out)})
    log = out / "debug.log"
    for command in (
        ["preprocess"],
        ["evaluate", "--launcher", "python"],
        ["inference", "--launcher", "python", "--lora-model-dir", str(out)],
        ["merge-lora"],
    ):
        before = log.read_bytes()
        host.run([command[0], str(file), *command[1:]], tmp_path, stdin="what is a river\n").check()
        after = log.read_bytes()
        assert after.startswith(before), command
        assert len(after) > len(before), command


# --- what is no run of this kind ---


def test_model_of_a_dpo_run_is_not_replaced(
    host: Host, model: Path, two_sets: list[Config], config: Config, tmp_path: Path
) -> None:
    """With and without the option to resume, which finds no run there."""
    plain = lora_config(model, two_sets, tmp_path, dataset_prepared_path=config["dataset_prepared_path"])
    host.train(write_config(tmp_path / "plain.yaml", plain)).check()
    out = Path(plain["output_dir"])
    before = state(out)
    for option in (None, True):
        result = train(host, config, out, auto_resume_from_checkpoints=option)
        refused(result, tmp_path / "nothing", f"output_dir: {str(out)!r} holds a model of another run (")
        assert state(out) == before


@pytest.mark.parametrize("place", ["", "step-2"])
def test_base_model_is_not_written_over(host: Host, model: Path, config: Config, tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    base = shutil.copytree(model, out / place)
    before = state(out)
    why = "lies where step step-2 is written" if place else "is the same directory as output_dir"
    result = train(host, config, out, base_model=str(base))
    refused(result, tmp_path / "nothing", f"base_model: {str(base)!r} {why}")
    assert state(out) == before


def test_base_model_elsewhere_in_the_output_directory(host: Host, model: Path, config: Config, tmp_path: Path) -> None:
    """The run leaves it as it is."""
    out = tmp_path / "out"
    base = Path(shutil.copytree(model, out / "base"))
    before = state(base)
    train(host, config, out, base_model=str(base), max_steps=1).check()
    assert state(base) == before
    assert (out / "step-2" / "adapter_config.json").exists()
