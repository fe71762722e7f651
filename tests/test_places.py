"""Nothing outside of the run directory is written or removed, wherever names and links lead."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import find_start
from sdpo_plugin.run_dir.sealed import seal
from tests.dead_runs import checkpoint, die, resume, save_ledger, with_step
from tests.fakes import FakeHost, make_plan, run

LINK = "is a symbolic link to {}, and a run writes nothing outside of its output_dir; put what it leads to in its place"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def move_out(path: Path, elsewhere: Path) -> dict[str, bytes]:
    """Move a file or directory and leave a link in its place; return its content."""
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    return contents(elsewhere)


# --- names ---


@pytest.mark.parametrize("name", ["../victim/step-1", "/etc", "..", "", ".", "sdpo", "checkpoint-5", "a/b", "a\0b"])
def test_ledger_that_names_another_directory_removes_nothing(run_dir: RunDir, tmp_path: Path, name: str) -> None:
    """A resumed run would remove the model that the ledger says is not kept; its digest fits."""
    ledger = die(run_dir, "train M_1 on D_2")
    shutil.copytree(run_dir.root / "step-1", tmp_path / "victim" / "step-1")
    before = contents(tmp_path / "victim")
    tables = {**ledger.tables, f"sdpo/reference/{name}.safetensors": "c" * 64}
    ledger = dataclasses.replace(ledger, tables=tables).record(1, kept=False)
    save_ledger(run_dir, with_step(ledger, 1, name=name))
    with pytest.raises(OutputError, match=r"is not a ledger of schema version 2 \((tables|plan\.steps\.0\.name): "):
        resume(run_dir, FakeHost())
    assert contents(tmp_path / "victim") == before


def test_step_name_of_a_ledger_is_held_to_the_rule_of_the_config(run_dir: RunDir) -> None:
    save_ledger(run_dir, with_step(die(run_dir, "train M_1 on D_2"), 1, name="../x"))
    expected = (
        f"{run_dir.ledger} is not a ledger of schema version 2 (plan.steps.0.name: a step's name is the directory its "
        "model is written to, and '../x' cannot be one: use letters, digits, '.', '_' and '-', beginning with a letter "
        "or digit; 'checkpoint-…', ['additional_chat_templates', 'merged', 'quantized', 'runs', 'sdpo', 'tokenizer'] "
        "and names that end like a file's ('.json', '.safetensors') are taken); restore it, or move the output "
        "directory away, or set another output_dir."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        find_start(run_dir)


@pytest.mark.parametrize("key", ["../x", "/x", "sdpo/../../x", "", "a\0b"])
def test_table_of_a_ledger_lies_below_the_run_directory(run_dir: RunDir, key: str) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    save_ledger(run_dir, dataclasses.replace(ledger, tables={**ledger.tables, key: "c" * 64}))
    with pytest.raises(OutputError, match=re.escape(f"(tables: {key!r} is no path below its directory)")):
        find_start(run_dir)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "STEP-2"}, "two steps have one name: ['STEP-2', 'step-2']"),
        ({"policy_init": "M_7"}, "step 1 starts from 'M_7'"),
        ({"name": "elsewhere"}, "step elsewhere is exported and has no reference table"),
    ],
)
def test_ledger_that_makes_no_sense_is_refused(run_dir: RunDir, change: dict[str, object], why: str) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    tables = {**ledger.tables, "sdpo/reference/STEP-2.safetensors": ""}
    save_ledger(run_dir, with_step(dataclasses.replace(ledger, tables=tables), 1, **change))
    with pytest.raises(OutputError, match=re.escape(f"({why})")):
        find_start(run_dir)


def test_ledger_that_gives_up_its_last_model_is_refused(run_dir: RunDir) -> None:
    save_ledger(run_dir, die(run_dir, "train M_1 on D_2").record(1, kept=False))
    with pytest.raises(OutputError, match=re.escape("(the model of step step-1 is the last one, and to be removed)")):
        find_start(run_dir)


def test_ledger_without_the_digest_of_a_model_that_is_kept_is_refused(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    save_ledger(run_dir, dataclasses.replace(ledger, exports={}))
    with pytest.raises(OutputError, match=re.escape("(step step-1 is exported and has no digest of its model)")):
        find_start(run_dir)


def test_model_that_no_step_makes_is_refused(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    save_ledger(run_dir, dataclasses.replace(ledger, exports={**ledger.exports, "../M": ""}))
    with pytest.raises(OutputError, match=re.escape("(it vouches for models that no step makes: ['../M'])")):
        find_start(run_dir)


def test_steps_that_were_renamed_are_refused_with_both_names(run_dir: RunDir) -> None:
    """Their tables and models lie under the old ones."""
    die(run_dir, "train M_1 on D_2")
    before, plan = contents(run_dir.root), make_plan()
    renamed = dataclasses.replace(plan, steps=(plan.steps[0], dataclasses.replace(plan.steps[1], name="hard")))
    expected = (
        "the run in output_dir cannot be resumed: since it began this has changed:\n"
        "  name of step 2 is 'hard', and it was 'step-2'\n"
        "Put it back, or train into another output_dir."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
        resume(run_dir, FakeHost(), renamed)
    assert contents(run_dir.root) == before


def test_steps_of_another_number_are_refused(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    with pytest.raises(ConfigError, match=re.escape("  name of step 3 is 'step-3', and it was not set\n")):
        resume(run_dir, FakeHost(), make_plan([[1.0]] * 3))


# --- links ---


def test_superseded_model_behind_a_link_stays(run_dir: RunDir, tmp_path: Path) -> None:
    """Its user has moved it where it is safe."""
    die(run_dir, "held-out tables by M_2, called M_2")
    before = move_out(run_dir.root / "step-1", tmp_path / "archive")
    ledger = resume(run_dir, FakeHost(), make_plan(export_steps="last"))
    assert [record.kept for record in ledger.records] == [False, True]
    assert contents(tmp_path / "archive") == before


def test_finished_model_may_be_read_through_a_link(run_dir: RunDir, tmp_path: Path) -> None:
    """Its seal vouches for it."""
    die(run_dir, "table of D_2 by M_1")
    before = move_out(run_dir.root / "step-1", tmp_path / "archive")
    assert resume(run_dir, FakeHost()).finished
    assert contents(tmp_path / "archive") == before


@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_model_is_not_written_through_a_link(run_dir: RunDir, tmp_path: Path, leads: str) -> None:
    ledger = die(run_dir, "table of D_2 by M_1")
    if leads == "somewhere":
        die(RunDir(tmp_path / "other"), "train M_1 on D_2")
        target = tmp_path / "other" / "step-1"
        seal(target, {"run": ledger.run_id, "model": "M_2"})  # also where it looks like this run's own
    else:
        target = tmp_path / "nowhere"
    (run_dir.root / "step-2").symlink_to(target)
    before, own = contents(tmp_path / "other"), contents(run_dir.root)
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.root / 'step-2'} {LINK.format(target)}")):
        resume(run_dir, FakeHost())
    assert contents(tmp_path / "other") == before
    assert contents(run_dir.root) == own
    assert leads == "somewhere" or not target.exists()


def test_new_run_does_not_write_through_a_link_either(run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run_dir.root.mkdir()
    (run_dir.root / "step-2").symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.root / 'step-2'} {LINK.format(tmp_path / 'other')}")):
        run(FakeHost(), run_dir)
    assert contents(tmp_path) == {}


def test_checkpoint_of_a_step_under_way_is_no_link(run_dir: RunDir, tmp_path: Path) -> None:
    die(run_dir, "train M_1 on D_2")
    newest = checkpoint(run_dir, 2, 5)
    before = move_out(newest, tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=re.escape(f"{newest} {LINK.format(tmp_path / 'elsewhere')}")):
        resume(run_dir, FakeHost())
    assert contents(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("folder", ["pool", "reference", "log-probs", "heldout"])
def test_tables_are_not_written_through_a_link(run_dir: RunDir, tmp_path: Path, folder: str) -> None:
    die(run_dir, "table of D_2 by M_1")
    place = run_dir.root / "sdpo" / folder
    place.mkdir(exist_ok=True)
    before = move_out(place, tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=re.escape(f"{place} {LINK.format(tmp_path / 'elsewhere')}")):
        resume(run_dir, FakeHost())
    assert contents(tmp_path / "elsewhere") == before


def test_records_are_replaced_and_not_what_they_lead_to(run_dir: RunDir, tmp_path: Path) -> None:
    """A file is written beside its place, and then gets its name."""
    die(run_dir, "train M_1 on D_2")
    before = {}
    for path in (run_dir.ledger, run_dir.plan, run_dir.reference(make_plan().steps[0])):
        before[tmp_path / path.name] = path.read_bytes()
        move_out(path, tmp_path / path.name)
    assert resume(run_dir, FakeHost()).finished
    assert {path: path.read_bytes() for path in before} == before
    assert not run_dir.ledger.is_symlink()


@pytest.mark.parametrize("act", ["clear", "resume"])
def test_staging_that_is_a_link_goes_and_its_target_stays(run_dir: RunDir, tmp_path: Path, act: str) -> None:
    die(run_dir, "train M_1 on D_2")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w").write_text("not the run's")
    run_dir.staging.symlink_to(tmp_path / "other")
    if act == "clear":
        clear(run_dir)
        assert not run_dir.staging.is_symlink()
    else:
        assert resume(run_dir, FakeHost()).finished
        assert (run_dir.root / "step-2" / "config.json").exists()
    assert contents(tmp_path / "other") == {"w": b"not the run's"}


def test_tables_behind_a_link_stay_when_a_run_begins_anew(run_dir: RunDir, tmp_path: Path) -> None:
    die(run_dir, "train M_0 on D_1")
    before = move_out(run_dir.root / "sdpo" / "reference", tmp_path / "elsewhere")
    clear(run_dir)
    assert contents(tmp_path / "elsewhere") == before
    assert not (run_dir.root / "sdpo" / "reference").is_symlink()
