"""Beginning afresh in a directory, models that are not kept, and the end of a run."""

import dataclasses
import re
from pathlib import Path

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.resume import Action, Start, clear, close_run, find_start, require_fresh, sweep
from sdpo_plugin.runner import run_steps
from sdpo_plugin.sealed import SEAL, read_seal
from tests.dead_runs import checkpoint, die, ledger_of
from tests.fakes import D_1, IDENTITY, FakeHost, make_plan

GO_ON = "set auto_resume_from_checkpoints: true"


def save_states(run: RunDir, *states: str) -> None:
    ledger_of((True, states, False, False)).save(run.ledger)


def fresh(run: RunDir) -> None:
    require_fresh(run, ["step-1", "step-2"])


def test_output_directory_without_a_ledger_is_fresh(run_dir: RunDir) -> None:
    fresh(run_dir)
    assert not run_dir.root.exists()


@pytest.mark.parametrize("state", ["planned", "scored", "training"])
def test_output_directory_without_a_finished_step_is_fresh(run_dir: RunDir, state: str) -> None:
    save_states(run_dir, state, "planned")
    (run_dir.root / "step-1" / "checkpoint-3").mkdir(parents=True)  # torn: nobody could go on from it
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
        f"start would overwrite them; {GO_ON} to go on where it stopped, or set another output_dir, or move or delete "
        "this one."
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
        f"the start would overwrite them; {GO_ON} to go on where it stopped, or set another output_dir, or move or "
        "delete this one."
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
    run_dir.ledger.write_text('{"schema_version": 1, "steps"')
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.ledger} is not a ledger of schema version 1 (")):
        fresh(run_dir)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_clearing_takes_what_a_run_that_came_to_nothing_has_left(run_dir: RunDir) -> None:
    die(run_dir, "train M_0 on D_1", FakeHost(adapter=True, early=["M_0"]))
    for path in (run_dir.pool(1), run_dir.staging / "half.bin", run_dir.root / "mine.txt", run_dir.lock):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    clear(run_dir)
    assert tree(run_dir.root) == {"mine.txt", "sdpo/plan.json", "sdpo/lock"}
    clear(run_dir)  # nothing to do


# --- models that are not kept, and the end ---


def finish(run: RunDir, num_steps: int = 3) -> Ledger:
    rows = [D_1] * num_steps
    host = FakeHost(rows)
    return run_steps(make_plan(rows), host, run, Ledger.begin(make_plan(rows), IDENTITY), host.progress)


def test_sweep_removes_the_models_that_the_ledger_says_are_gone(run_dir: RunDir) -> None:
    ledger = finish(run_dir)
    checkpoint(run_dir, 2, 5)
    sweep(run_dir, ledger)
    assert {f"step-{step}/config.json" for step in (1, 2, 3)} <= tree(run_dir.root)
    sweep(run_dir, ledger.record(2, kept=False))
    assert {path for path in tree(run_dir.root) if path.startswith("step-2")} == {
        "step-2/checkpoint-5/model.bin",
        f"step-2/checkpoint-5/{SEAL}",
    }
    assert {"step-1/config.json", "step-3/config.json"} <= tree(run_dir.root)


@pytest.mark.parametrize("keep_last", [True, False])
def test_closing_a_run_records_it_and_takes_away_the_double(run_dir: RunDir, keep_last: bool) -> None:
    before = finish(run_dir)
    close_run(run_dir, keep_last)
    final = read_seal(run_dir.root)
    assert final.about == {"run": before.run, "model": "M_3"}
    expected = dataclasses.replace(before, saved=True, final=final.digest).record(3, kept=keep_last)
    assert Ledger.load(run_dir.ledger) == expected
    assert ("step-3/config.json" in tree(run_dir.root)) is keep_last
    assert {"step-1/config.json", "step-2/config.json"} <= tree(run_dir.root)
    close_run(run_dir, keep_last)
    assert Ledger.load(run_dir.ledger) == expected


def test_double_goes_only_when_the_ledger_says_so(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that died in between would look for M_T in vain."""
    finish(run_dir)

    def fail(self: Ledger, path: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            close_run(run_dir, keep_last=False)
    assert find_start(run_dir) == Start(Ledger.load(run_dir.ledger), Action("save", 0, "M_3"), run_dir.root / "step-3")
