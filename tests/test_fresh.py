"""A new run may begin only where it overwrites no work of another run."""

import re

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.fresh import require_fresh, require_no_foreign_model
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import checkpoint, die, ledger_of, save_ledger

TO_RESUME = "set auto_resume_from_checkpoints: true"


def save_states(run: RunDir, *states: str) -> None:
    save_ledger(run, ledger_of((True, states, False, False)))


def fresh(run: RunDir) -> None:
    require_fresh(run, ["step-1", "step-2"])


def test_output_directory_without_a_ledger_is_fresh(run_dir: RunDir) -> None:
    fresh(run_dir)
    assert not run_dir.root.exists()


@pytest.mark.parametrize("state", ["planned", "referenced", "training"])
def test_output_directory_without_a_finished_step_is_fresh(run_dir: RunDir, state: str) -> None:
    save_states(run_dir, state, "planned")
    (run_dir.root / "step-1" / "checkpoint-3").mkdir(parents=True)  # torn: no run can be resumed from it
    fresh(run_dir)


@pytest.mark.parametrize(
    ("states", "names"),
    [
        (("trained",), "step-1"),
        (("exported",), "step-1"),
        (("exported", "training"), "step-1"),
        (("exported", "trained"), "step-1, step-2"),
        (("exported", "exported", "planned"), "step-1, step-2"),
    ],
    ids=str,
)
def test_output_directory_with_finished_steps_is_refused(run_dir: RunDir, states: tuple[str, ...], names: str) -> None:
    save_states(run_dir, *states)
    expected = (
        f"output_dir: {str(run_dir.root)!r} holds finished steps of an earlier run ({names}), and training from the "
        f"start would overwrite them; {TO_RESUME} to resume where it stopped, or set another output_dir, or move or "
        "delete this one."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        fresh(run_dir)


def test_output_directory_with_a_half_trained_step_is_refused(run_dir: RunDir) -> None:
    die(run_dir, "train M_0 on D_1")
    checkpoint(run_dir, 1, 5)
    newest = checkpoint(run_dir, 1, 10)
    (run_dir.root / "step-1" / "checkpoint-11").mkdir()
    expected = (
        f"output_dir: {str(run_dir.root)!r} holds a half-trained step of an earlier run ({newest}), and training from "
        f"the start would overwrite them; {TO_RESUME} to resume where it stopped, or set another output_dir, or move "
        "or delete this one."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        fresh(run_dir)


@pytest.mark.parametrize("marker", ["config.json", "adapter_config.json"])
def test_model_in_the_place_of_a_step_is_not_overwritten(run_dir: RunDir, marker: str) -> None:
    for name in ("step-2", "step-3"):
        (run_dir.root / name).mkdir(parents=True)
        (run_dir.root / name / marker).write_text("{}")
    expected = (
        f"output_dir: {str(run_dir.root)!r} holds models in step-2 that this run would overwrite, and "
        "nothing says how they were made; set another output_dir, or move or delete them."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        fresh(run_dir)


def test_output_directory_with_a_torn_ledger_is_not_fresh(run_dir: RunDir) -> None:
    run_dir.ledger.parent.mkdir(parents=True)
    run_dir.ledger.write_text('{"schema_version": 2, "records"')
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.ledger} is not a ledger of schema version 2 (")):
        fresh(run_dir)


# --- models of other runs ---


def put(run: RunDir, *names: str) -> None:
    for name in names:
        (run.root / name).parent.mkdir(parents=True, exist_ok=True)
        (run.root / name).write_text("{}")


FOREIGN = [
    "config.json",
    "adapter_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
]


@pytest.mark.parametrize("name", [*FOREIGN, "checkpoint-12/config.json"])
def test_model_of_another_run_is_not_overwritten(run_dir: RunDir, name: str) -> None:
    put(run_dir, name)
    expected = (
        f"output_dir: {str(run_dir.root)!r} holds a model of another run ({name.split('/')[0]}), which this run would "
        "overwrite; set another output_dir, or move or delete that model."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        require_fresh(run_dir, [])


def test_model_of_many_files_is_named_by_three(run_dir: RunDir) -> None:
    put(run_dir, *FOREIGN)
    with pytest.raises(
        OutputError, match=re.escape("(adapter_config.json, adapter_model.safetensors, config.json and 3 more)")
    ):
        require_no_foreign_model(run_dir)


@pytest.mark.parametrize("name", ["debug.log", "runs/events", "notes.txt", "base/config.json", "checkpoint-notes/a"])
def test_other_files_are_no_model(run_dir: RunDir, name: str) -> None:
    put(run_dir, name)
    require_fresh(run_dir, [])


def test_configs_that_the_host_has_put_beside_a_run_are_no_model(run_dir: RunDir) -> None:
    """The host writes them before it trains; a run that died then has no ledger yet."""
    put(run_dir, "sdpo/lock", "config.json", "adapter_config.json", "tokenizer.json")
    require_fresh(run_dir, [])
    put(run_dir, "model.safetensors")
    with pytest.raises(OutputError, match=re.escape("(model.safetensors)")):
        require_fresh(run_dir, [])


def test_model_beside_a_ledger_is_the_runs_own(run_dir: RunDir) -> None:
    put(run_dir, "model.safetensors", "config.json")
    save_states(run_dir, "planned", "planned")
    require_fresh(run_dir, [])
