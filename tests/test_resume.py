"""Where a run is resumed, over everything that can be wrong on disk."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.checkpoints import about_checkpoint, checkpoints
from sdpo_plugin.run_dir.cleanup import sweep
from sdpo_plugin.run_dir.journal import close_run
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.next_action import Action
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import Start, find_start
from sdpo_plugin.run_dir.sealed import SEAL, read_seal, seal
from tests.dead_runs import checkpoint, die, resume, save_ledger
from tests.fakes import EXTERNAL, WEIGHTS, FakeHost, HostDiedError, make_plan, run

TO_RESUME = "set auto_resume_from_checkpoints: true"
IN_TRAINING = ("train M_0 on D_1", "train M_1 on D_2")

# --- runs that died ---


@pytest.mark.parametrize(
    ("call", "action", "model_dir"),
    [
        ("export the start", Action("prepare", 0, "M_0"), None),
        ("table of D_1 by M_0", Action("reference", 1, "M_0"), "sdpo/start"),
        ("settings of step-1", Action("train", 1, "M_0"), "sdpo/start"),
        ("train M_0 on D_1", Action("train", 1, "M_0"), "sdpo/start"),
        ("export M_1 to staging", Action("train", 1, "M_0"), "sdpo/start"),
        ("table of D_2 by M_1", Action("reference", 2, "M_1"), "step-1"),
        ("train M_1 on D_2", Action("train", 2, "M_1"), "step-1"),
        ("export M_2 to staging", Action("train", 2, "M_1"), "step-1"),
        ("held-out tables by M_2, called M_2", Action("finish", 0, "M_2"), "step-2"),
    ],
)
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
def test_dead_run_is_resumed_with_the_model_that_its_next_action_needs(
    run_dir: RunDir, call: str, action: Action, model_dir: str | None, adapter: bool
) -> None:
    ledger = die(run_dir, call, FakeHost(adapter=adapter))
    if not adapter and model_dir == "sdpo/start":
        model_dir = None  # the base model itself
    assert find_start(run_dir) == Start(ledger, action, None if model_dir is None else run_dir.root / model_dir)


@pytest.mark.parametrize("export_steps", ["all", "last"])
def test_finished_run_has_its_model_still_to_be_saved_and_then_nothing(run_dir: RunDir, export_steps: str) -> None:
    ledger = run(FakeHost(), run_dir, make_plan(export_steps=export_steps))
    assert find_start(run_dir) == Start(ledger, Action("save", 0, "M_2"), run_dir.root / "step-2")
    close_run(run_dir, keep_last=export_steps == "all")
    start = find_start(run_dir)
    # M_T's double has gone with `export_steps: last`, and nobody asks for it
    assert (start.action, start.model_dir, start.checkpoint) == (Action("nothing", 0, "M_2"), None, None)


def finish(run_dir: RunDir, keep_last: bool = True) -> Path:
    """A run to its end; the final model, as the host would have written it."""
    run(FakeHost(), run_dir)
    final = run_dir.root / "model.safetensors"
    final.write_bytes(b"M_2" * 100)
    (run_dir.root / "config.json").write_text("{}")
    (run_dir.root / "README.md").write_text("a card")
    close_run(run_dir, keep_last)
    return final


def test_finished_run_may_lose_its_models_and_no_part_of_one(run_dir: RunDir) -> None:
    """Whoever deletes a whole directory means it; half a one would be loaded."""
    finish(run_dir)
    (run_dir.root / "step-2" / WEIGHTS).unlink()
    with pytest.raises(OutputError, match=rf"step-2 is not the M_2 that this run has made: {WEIGHTS} is missing"):
        find_start(run_dir)
    shutil.rmtree(run_dir.root / "step-2")
    start = find_start(run_dir)
    assert start.action.kind == "nothing"
    assert "step-2 has been deleted" in start.passed_over[0]


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_final_model_that_is_not_whole_is_written_again(run_dir: RunDir, damage: str) -> None:
    final = finish(run_dir)
    data = final.read_bytes()
    changed = {"cut": data[:50], "changed": data[:-1] + b"!"}
    final.unlink() if damage == "missing" else final.write_bytes(changed[damage])
    said = {"missing": "is missing", "cut": "has 50 bytes instead of 300", "changed": "has been changed"}[damage]
    start = find_start(run_dir)
    assert (start.action, start.model_dir) == (Action("save", 0, "M_2"), run_dir.root / "step-2")
    assert f"the final model in {run_dir.root} is not whole (model.safetensors {said}" in start.passed_over[0]
    final.write_bytes(data)
    assert find_start(run_dir).action.kind == "nothing"


def test_final_model_that_is_not_whole_and_has_no_double_is_refused(run_dir: RunDir) -> None:
    """`export_steps: last`, or a step-2 that its user has deleted."""
    finish(run_dir, keep_last=False).unlink()
    with pytest.raises(OutputError, match=r"does not hold the final model .*: model.safetensors is missing. Restore"):
        find_start(run_dir)


def test_card_of_the_final_model_may_be_edited(run_dir: RunDir) -> None:
    finish(run_dir)
    (run_dir.root / "README.md").write_text("a better card")
    assert find_start(run_dir).action.kind == "nothing"


def test_card_of_a_step_s_model_may_be_edited(run_dir: RunDir) -> None:
    """Whoever publishes M_1 while step 2 trains need not choose between its card and the run."""

    class WithCards(FakeHost):
        def export_step(self, step: StepPlan, directory: Path) -> None:
            super().export_step(step, directory)
            (directory / "README.md").write_text("a card")

    ledger = die(run_dir, "train M_1 on D_2", WithCards())
    assert (run_dir.root / "step-1" / "README.md").read_text() == "a card"
    (run_dir.root / "step-1" / "README.md").write_text("a better card")
    assert find_start(run_dir) == Start(ledger, Action("train", 2, "M_1"), run_dir.root / "step-1")


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
def test_step_that_starts_from_the_base_model_needs_no_other(run_dir: RunDir, adapter: bool) -> None:
    ledger = die(run_dir, "train M_0 on D_2", FakeHost(adapter=adapter), make_plan(policy_init="base"))
    assert find_start(run_dir) == Start(ledger, Action("train", 2, "M_0"), run_dir.base_adapter if adapter else None)


# --- checkpoints ---


def test_checkpoints_stand_in_the_order_of_their_updates(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-", "checkpoint-x", "tmp-checkpoint-5"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("last_call", ["train", "export"])
def test_run_is_resumed_from_the_newest_whole_checkpoint(run_dir: RunDir, step: int, last_call: str) -> None:
    ledger = die(run_dir, IN_TRAINING[step - 1] if last_call == "train" else f"export M_{step} to staging")
    for updates in (8, 9, 10):
        newest = checkpoint(run_dir, step, updates)
    action = Action("train", step, f"M_{step - 1}")
    assert find_start(run_dir) == Start(ledger, action, None, newest)


def cut(path: Path) -> None:
    (path / "model.bin").write_bytes(b"012345678")


def flip(path: Path) -> None:
    (path / "model.bin").write_bytes(b"0123456788")


def unseal(path: Path) -> None:
    (path / SEAL).unlink()


def tear_seal(path: Path) -> None:
    (path / SEAL).write_bytes((path / SEAL).read_bytes()[:-20])


def become_a_file(path: Path) -> None:
    for name in ("model.bin", SEAL):
        (path / name).unlink()
    path.rmdir()
    path.touch()


DEFECTS = [
    pytest.param(cut, {}, "model.bin has 9 bytes instead of 10", id="torn"),
    pytest.param(flip, {}, "model.bin has been changed: its digest does not fit the seal", id="bit-flipped"),
    pytest.param(unseal, {}, "it has no seal, so it was never finished", id="no-seal"),
    pytest.param(tear_seal, {}, "its seal is damaged (", id="torn-seal"),
    pytest.param(become_a_file, {}, "it has no seal, so it was never finished", id="a-file"),
    pytest.param(None, {"run": "other"}, "it belongs to another run ('other' instead of ", id="other-run"),
    pytest.param(
        None, {"step": "step-1"}, "it belongs to another step ('step-1' instead of 'step-2')", id="other-step"
    ),
    pytest.param(
        None,
        {"reference": "0" * 64},
        f"it belongs to another reference ('{'0' * 64}' instead of ",
        id="other-reference",
    ),
]


@pytest.mark.parametrize(("damage", "about", "reason"), DEFECTS)
def test_checkpoint_that_cannot_be_trusted_is_passed_over_with_the_reason(
    run_dir: RunDir, damage: Callable[[Path], None] | None, about: dict[str, str], reason: str
) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    good, bad = checkpoint(run_dir, 2, 9), checkpoint(run_dir, 2, 10, about)
    if damage is not None:
        damage(bad)
    start = find_start(run_dir)
    assert (start.ledger, start.action, start.checkpoint) == (ledger, Action("train", 2, "M_1"), good)
    assert len(start.passed_over) == 1
    assert start.passed_over[0].startswith(f"{bad} is passed over: {reason}")


def test_step_without_a_whole_checkpoint_begins_again(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    for updates, damage in ((5, cut), (6, flip), (7, unseal)):
        damage(checkpoint(run_dir, 2, updates))
    start = find_start(run_dir)
    expected = Start(ledger, Action("train", 2, "M_1"), run_dir.root / "step-1", None, start.passed_over)
    assert start == expected
    step = run_dir.root / "step-2"
    assert start.passed_over == (
        f"{step / 'checkpoint-7'} is passed over: it has no seal, so it was never finished",
        f"{step / 'checkpoint-6'} is passed over: model.bin has been changed: its digest does not fit the seal",
        f"{step / 'checkpoint-5'} is passed over: model.bin has 9 bytes instead of 10",
    )


def test_checkpoint_of_another_step_does_not_count(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 1, 50)
    assert find_start(run_dir).checkpoint is None


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_damaged_model_is_refused_also_where_a_checkpoint_holds_the_policy(
    run_dir: RunDir, damage: Callable[[Path], None]
) -> None:
    """It is kept for its user, who would not learn of it otherwise. Deleting all of it is the user's own business."""
    ledger = die(run_dir, "train M_1 on D_2")
    newest, model = checkpoint(run_dir, 2, 5), run_dir.root / "step-1"
    damage(model / WEIGHTS)
    problem = f"{WEIGHTS} has 0 bytes instead of 3" if (model / WEIGHTS).exists() else f"{WEIGHTS} is missing"
    expected = (
        f"{model} is not the M_1 that this run has made: {problem}. Resuming does not need it: restore it, or "
        "delete the whole directory to resume without it."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        find_start(run_dir)
    shutil.rmtree(model)  # the remedy helps
    start = find_start(run_dir)
    line = f"{model} has been deleted: the run resumes without M_1, which it does not need"
    expected_ledger = replace(ledger.record(1, kept=False), exports={})
    assert start == Start(expected_ledger, Action("train", 2, "M_1"), None, newest, (line,))


def test_flipped_bit_of_a_model_that_is_not_needed_is_not_looked_for(run_dir: RunDir) -> None:
    """Reading every model of a long chain would take hours; names and sizes take none."""
    ledger = die(run_dir, "train M_1 on D_2")
    newest = checkpoint(run_dir, 2, 5)
    flip_bit(run_dir.root / "step-1" / WEIGHTS)
    assert find_start(run_dir) == Start(ledger, Action("train", 2, "M_1"), None, newest)


@pytest.mark.parametrize("left", ["config.json", SEAL])
def test_model_of_which_something_is_left_is_damaged(run_dir: RunDir, left: str) -> None:
    die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 5)
    for path in (run_dir.root / "step-1").iterdir():
        if path.name != left:
            path.unlink()
    with pytest.raises(OutputError, match=r"delete the whole directory to resume without it\.$"):
        find_start(run_dir)


def test_model_that_is_needed_is_missed_when_it_is_deleted(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    shutil.rmtree(run_dir.root / "step-1")
    with pytest.raises(OutputError, match=r"step-1 is not the M_1 that this run has made: it has no seal.*Restore it"):
        find_start(run_dir)


def test_several_deleted_models_are_reported_one_by_one(run_dir: RunDir) -> None:
    """The checkpoints of a step may stay where its model goes."""
    plan = make_plan([[1.0]] * 3)
    die(run_dir, "held-out tables by M_3, called M_3", FakeHost([[1.0]] * 3), plan)
    kept = checkpoint(run_dir, 1, 5)
    for path in (run_dir.root / "step-1").iterdir():
        if path != kept:
            path.unlink()
    shutil.rmtree(run_dir.root / "step-2")
    start = find_start(run_dir)
    assert start.ledger is not None
    assert [record.kept for record in start.ledger.records] == [False, False, True]
    assert start.passed_over == tuple(
        f"{run_dir.root / f'step-{index}'} has been deleted: the run resumes without M_{index}, which it does not need"
        for index in (1, 2)
    )
    ledger = resume(run_dir, FakeHost([[1.0]] * 3), plan)
    assert ledger.finished
    assert Ledger.load(run_dir.ledger) == ledger
    assert [step["model_dir"] for step in build_report(run_dir)["steps"]] == [None, None, "step-3"]
    assert find_start(run_dir).passed_over == ()  # reported once


def test_seal_of_a_checkpoint_names_run_step_and_reference(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    assert about_checkpoint(run_dir, ledger, ledger.plan.steps[1]) == {
        "run": ledger.run_id,
        "step": "step-2",
        "reference": ledger.tables["sdpo/reference/step-2.safetensors"],
    }


# --- a checkpoint that was asked for ---


def test_checkpoint_that_was_asked_for_is_taken_instead_of_the_newest(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    older = checkpoint(run_dir, 2, 5)
    checkpoint(run_dir, 2, 6)
    assert find_start(run_dir, older) == Start(ledger, Action("train", 2, "M_1"), None, older)


@pytest.mark.parametrize(("damage", "about", "reason"), DEFECTS)
def test_checkpoint_that_was_asked_for_and_cannot_be_trusted_is_refused(
    run_dir: RunDir, damage: Callable[[Path], None] | None, about: dict[str, str], reason: str
) -> None:
    die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 9)
    asked = checkpoint(run_dir, 2, 10, about)
    if damage is not None:
        damage(asked)
    expected = (
        rf"resume_from_checkpoint: '{re.escape(str(asked))}' is no checkpoint that step step-2 can be resumed from: "
        rf"{re.escape(reason)}.*; remove it and {TO_RESUME} to take the newest whole one\."
    )
    with pytest.raises(OutputError, match=f"^{expected}$"):
        find_start(run_dir, asked)


def test_checkpoint_that_does_not_exist_is_refused(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    expected = (
        f"resume_from_checkpoint: 'nowhere' does not exist; set the path of a checkpoint, or remove it and {TO_RESUME} "
        "to take the newest whole one."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        find_start(run_dir, Path("nowhere"))


@pytest.mark.parametrize(
    ("call", "kind"), [("table of D_2 by M_1", "reference"), ("held-out tables by M_2, called M_2", "finish")]
)
def test_checkpoint_is_of_no_use_where_no_step_is_half_trained(run_dir: RunDir, call: str, kind: str) -> None:
    die(run_dir, call)
    asked = checkpoint(run_dir, 1, 5)
    expected = (
        f"resume_from_checkpoint: {str(asked)!r} is of no use: no step is half trained (next: {kind}); "
        f"remove it and {TO_RESUME}."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        find_start(run_dir, asked)


# --- models and tables ---


def drop_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "weights.json is missing"),
        (drop_byte, "weights.json has 2 bytes instead of 3"),
        (flip_bit, "weights.json has been changed: its digest does not fit the seal"),
        (lambda path: (path.parent / SEAL).unlink(), "it has no seal, so it was never finished"),
    ],
    ids=["missing", "torn", "changed", "no-seal"],
)
@pytest.mark.parametrize("call", ["table of D_2 by M_1", "train M_1 on D_2"])
def test_damaged_model_is_refused_by_its_directory_and_file(
    run_dir: RunDir, call: str, damage: Callable[[Path], None], reason: str
) -> None:
    die(run_dir, call)
    damage(run_dir.root / "step-1" / WEIGHTS)  # "1.0"
    expected = (
        f"{run_dir.root / 'step-1'} is not the M_1 that this run has made: {reason}. Restore it, or train again into "
        "another output_dir."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        find_start(run_dir)


def test_model_of_another_run_is_refused(run_dir: RunDir, tmp_path: Path) -> None:
    die(run_dir, "table of D_2 by M_1")
    other = RunDir(tmp_path / "other")
    die(other, "table of D_2 by M_1")
    for path in (other.root / "step-1").iterdir():
        path.replace(run_dir.root / "step-1" / path.name)
    with pytest.raises(OutputError, match="step-1 is not the M_1 that this run has made: it belongs to another run"):
        find_start(run_dir)


def test_model_that_was_sealed_again_is_refused(run_dir: RunDir) -> None:
    """Whole, of this run, and yet not the one that the ledger vouches for."""
    ledger = die(run_dir, "table of D_2 by M_1")
    (run_dir.root / "step-1" / WEIGHTS).write_text("7.0")
    seal(run_dir.root / "step-1", {"run": ledger.run_id, "model": "M_1"})
    with pytest.raises(OutputError, match=r"has made: it is not the one that the ledger vouches for\."):
        find_start(run_dir)


def test_lost_start_is_refused(run_dir: RunDir) -> None:
    die(run_dir, "table of D_1 by M_0", FakeHost(adapter=True))
    (run_dir.base_adapter / WEIGHTS).unlink()
    with pytest.raises(
        OutputError, match=re.escape(f"{run_dir.base_adapter} is not the M_0 that this run has made: weights")
    ):
        find_start(run_dir)


def test_torn_ledger_is_refused(run_dir: RunDir) -> None:
    die(run_dir, "table of D_2 by M_1")
    drop_byte(run_dir.ledger)
    drop_byte(run_dir.ledger)
    with pytest.raises(OutputError, match="is not a ledger of schema version 2"):
        find_start(run_dir)


def test_lost_reference_table_is_computed_again_by_the_model_before_the_step(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 5)
    table = run_dir.reference(ledger.plan.steps[1])
    table.unlink()
    start = find_start(run_dir)
    assert (start.action, start.model_dir, start.checkpoint) == (
        Action("reference", 2, "M_1"),
        run_dir.root / "step-1",
        None,
    )
    assert start.ledger is not None
    assert run_dir.key(table) not in start.ledger.tables
    # With what else M_1 has given before step 2, which it gives again: the remedy for a damaged held-out table too.
    lost = {run_dir.key(path) for path in (table, *(run_dir.heldout("M_1", column) for column in (0, 1)))}
    assert set(start.ledger.tables) == set(ledger.tables) - lost
    assert [record.state for record in start.ledger.records] == ["exported", "planned"]


def test_lost_reference_table_of_the_first_step_is_computed_again_by_the_base_model(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_0 on D_1")
    run_dir.reference(ledger.plan.steps[0]).unlink()
    start = find_start(run_dir)
    assert start.action == Action("reference", 1, "M_0")
    assert start.ledger is not None
    assert run_dir.key(run_dir.reference(ledger.plan.steps[0])) not in start.ledger.tables


@pytest.mark.parametrize("reference", ["base", EXTERNAL])
def test_lost_table_of_another_reference_is_not_computed_by_the_model_before(run_dir: RunDir, reference: str) -> None:
    """That would be another reference; reading it says what is missing."""
    host = FakeHost(early=["M_0" if reference == "base" else EXTERNAL])
    ledger = die(run_dir, "train M_1 on D_2", host, make_plan(reference=reference))
    run_dir.reference(ledger.plan.steps[1]).unlink()
    assert find_start(run_dir) == Start(ledger, Action("train", 2, "M_1"), run_dir.root / "step-1")


def test_table_of_a_step_that_is_done_is_not_missed(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    run_dir.reference(ledger.plan.steps[0]).unlink()
    assert find_start(run_dir).action == Action("train", 2, "M_1")


def test_model_that_was_deleted_and_put_back_is_left_alone(run_dir: RunDir, tmp_path: Path) -> None:
    """The ledger says again that it is there; what would be removed is only what the run itself gives up."""
    plan = make_plan([[1.0]] * 3)
    die(run_dir, "train M_2 on D_3", FakeHost([[1.0]] * 3), plan)
    model = run_dir.root / "step-1"
    model.rename(tmp_path / "archive")
    start = find_start(run_dir)
    assert start.ledger is not None
    with pytest.raises(HostDiedError):
        resume(run_dir, FakeHost([[1.0]] * 3, dies_in="train M_2 on D_3"), plan)
    (tmp_path / "archive").rename(model)
    before = Ledger.load(run_dir.ledger)
    sweep(run_dir, before)
    assert (model / WEIGHTS).exists()
    start = find_start(run_dir)
    assert start.passed_over == (f"{model} is back: M_1 was missing before",)
    assert start.ledger is not None
    assert [record.kept for record in before.records] == [False, True, True]
    assert [record.kept for record in start.ledger.records] == [True, True, True]
    assert start.ledger.exports["M_1"] == read_seal(model).digest


def test_model_that_is_needed_again_can_be_put_back(run_dir: RunDir, tmp_path: Path) -> None:
    """It was deleted while a checkpoint held the policy, and then the checkpoint was lost."""
    host = FakeHost(dies_in="train M_0 on D_2")  # the fake does not read checkpoints
    die(run_dir, "train M_1 on D_2")
    newest, model = checkpoint(run_dir, 2, 5), run_dir.root / "step-1"
    model.rename(tmp_path / "archive")
    start = find_start(run_dir)
    assert start.ledger is not None
    with pytest.raises(HostDiedError):
        resume(run_dir, host)
    shutil.rmtree(newest)
    with pytest.raises(OutputError, match=r"step-1 is not the M_1 that this run has made: it has no seal.*Restore it"):
        find_start(run_dir)
    (tmp_path / "archive").rename(model)
    start = find_start(run_dir)
    assert (start.action, start.model_dir) == (Action("train", 2, "M_1"), model)
    assert start.ledger is not None
    assert start.ledger.records[0].kept


@pytest.mark.parametrize("needed", [True, False])
def test_model_that_came_back_damaged_is_no_model_again(run_dir: RunDir, needed: bool) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    exports = {model: digest for model, digest in ledger.exports.items() if model != "M_1"}
    save_ledger(run_dir, replace(ledger.record(1, kept=False), exports=exports))
    drop_byte(run_dir.root / "step-1" / WEIGHTS)
    if needed:
        with pytest.raises(OutputError, match=r"made: weights.json has 2 bytes instead of 3\. Restore it, or train"):
            find_start(run_dir)
        return
    newest = checkpoint(run_dir, 2, 5)
    start = find_start(run_dir)
    assert (start.checkpoint, start.passed_over) == (newest, ())
