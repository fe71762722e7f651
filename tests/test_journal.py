"""The journal, the one writer of the ledger: what it says is done, what it writes in which order, and who writes."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

import pytest

from sdpo_plugin.errors import ConfigError, OutputError, ReferenceTableError
from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.journal import Journal, close_run
from sdpo_plugin.run_dir.ledger import Ledger, State
from sdpo_plugin.run_dir.next_action import Action
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import Start, find_start
from sdpo_plugin.run_dir.sealed import Files, flaw, read_seal
from sdpo_plugin.run_dir.table_files import load_table
from tests.dead_runs import die
from tests.fakes import D_1, D_2, HELDOUT, IDENTITY, FakeHost, content, make_plan, of_other_rows, run, table_of

T = TypeVar("T")
PLAN = make_plan()
FIRST, SECOND = PLAN.steps
BY_M_0 = {name: table_of(rows, -1.0, "M_0") for name, rows in HELDOUT.items()}


class OneRank:
    """A run of one process."""

    def on_rank_0(self, action: Callable[[], T]) -> T:
        return action()

    def written_by_all(self, directory: Path) -> Files:
        return {}


class OtherRank:
    """A rank that runs nothing itself; it gets the answers of rank 0."""

    def __init__(self, answers: list[object]) -> None:
        self._answers = iter(answers)

    def on_rank_0(self, action: Callable[[], T]) -> T:
        return next(self._answers)  # type: ignore[return-value]

    def written_by_all(self, directory: Path) -> Files:
        return {}


class RankZero:
    """Keeps the answers it got, for ``OtherRank``."""

    def __init__(self) -> None:
        self.answers: list[object] = []

    def on_rank_0(self, action: Callable[[], T]) -> T:
        self.answers.append(action())
        return self.answers[-1]  # type: ignore[return-value]

    def written_by_all(self, directory: Path) -> Files:
        return {}


def begin(run_dir: RunDir, plan: Plan = PLAN) -> Journal:
    return Journal(run_dir, OneRank(), plan, Ledger.begin(plan, IDENTITY))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write_model(journal: Journal, weights: str) -> None:
    journal.staging.mkdir(parents=True)
    (journal.staging / "weights").write_text(weights)
    (journal.staging / "config.json").write_text("{}")


# --- what is done ---


@pytest.mark.parametrize("state", get_args(State))
def test_what_is_done_of_a_step_is_what_its_record_says(run_dir: RunDir, state: State) -> None:
    journal = begin(run_dir)
    journal.record(FIRST, state=state)
    assert journal.is_referenced(FIRST) is (state != "planned")
    assert journal.is_exported(FIRST) is (state == "exported")
    assert (journal.is_referenced(SECOND), journal.is_exported(SECOND)) == (False, False)


def test_what_is_done_of_the_run(run_dir: RunDir) -> None:
    journal = begin(run_dir)
    assert (journal.is_prepared, journal.is_finished) == (False, False)
    journal.record_prepared([], {})
    assert (journal.is_prepared, journal.is_finished) == (True, False)
    journal.record_end({name: dataclasses.replace(table, model="M_2") for name, table in BY_M_0.items()})
    assert journal.is_finished


def test_table_that_was_made_before_step_1_is_known(run_dir: RunDir) -> None:
    journal, table = begin(run_dir), table_of(D_1, -1.0, "M_0")
    assert not journal.has_table(FIRST)
    journal.record_prepared([(FIRST, table), (SECOND, table_of(D_2, -1.0, "M_0"))], {})
    assert (journal.has_table(FIRST), journal.has_table(SECOND)) == (True, False)  # the reference of step 2 is M_1
    assert content(journal.reference(FIRST)) == content(table)
    assert load_table(run_dir.log_probs("M_0", SECOND)).model == "M_0"


def test_tables_of_a_step_are_read_back_from_disk(run_dir: RunDir) -> None:
    journal, table = begin(run_dir), table_of(D_1, -1.0, "M_0")
    journal.record_prepared([], {})
    journal.record_reference(FIRST, table, BY_M_0, 1.5)
    assert content(journal.reference(FIRST)) == content(table)
    assert {name: content(found) for name, found in journal.heldout(FIRST).items()} == {
        name: content(found) for name, found in BY_M_0.items()
    }
    assert journal.ledger.records[0].log_probs_seconds == 1.5
    run_dir.reference(FIRST).unlink()
    with pytest.raises(ReferenceTableError, match="cannot read the reference table"):
        journal.reference(FIRST)


# --- data first ---


def test_ledger_on_disk_is_always_the_one_in_memory(run_dir: RunDir) -> None:
    journal = begin(run_dir)
    acts: list[Callable[[], None]] = [
        lambda: journal.record_prepared([], {}),
        lambda: journal.record_reference(FIRST, table_of(D_1, -1.0, "M_0"), BY_M_0, 1.0),
        lambda: journal.record(FIRST, state="training"),
    ]
    for act in acts:
        assert Ledger.load(run_dir.ledger) == journal.ledger
        act()
    assert Ledger.load(run_dir.ledger) == journal.ledger


def test_data_stand_before_the_record_that_vouches_for_them(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record cannot be written any more, the data are there and the ledger is the one before."""

    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    journal = begin(run_dir)
    journal.record_prepared([], {})
    before = run_dir.ledger.read_bytes()
    monkeypatch.setattr("sdpo_plugin.run_dir.journal.write_stored", fail)
    expected = f"^{re.escape(str(run_dir.ledger))} could not be written: No space left on device"
    with pytest.raises(OutputError, match=expected):
        journal.record_reference(FIRST, table_of(D_1, -1.0, "M_0"), BY_M_0, 1.0)
    assert load_table(run_dir.reference(FIRST)).model == "M_0"
    assert {load_table(run_dir.heldout("M_0", column)).model for column in (0, 1)} == {"M_0"}
    write_model(journal, "1.0")
    journal.publish(FIRST)
    with pytest.raises(OutputError, match=expected):
        journal.record_export(FIRST, 1.0)
    assert flaw(run_dir.step(FIRST), {"run": journal.ledger.run_id, "model": "M_1"}) is None
    assert run_dir.ledger.read_bytes() == before


def test_table_that_cannot_be_written_leaves_the_ledger_as_it_was(run_dir: RunDir) -> None:
    journal = begin(run_dir)
    run_dir.reference(FIRST).parent.touch()
    before = run_dir.ledger.read_bytes()
    with pytest.raises(OutputError, match="could not be written"):
        journal.record_reference(FIRST, table_of(D_1, -1.0, "M_0"), BY_M_0, 1.0)
    assert run_dir.ledger.read_bytes() == before


def test_table_of_other_rows_is_neither_written_nor_recorded(run_dir: RunDir) -> None:
    journal = begin(run_dir, of_other_rows(PLAN, rows_digest="f" * 64))
    before = files(run_dir.root)
    with pytest.raises(ReferenceTableError, match="it was made for other data"):
        journal.record_reference(journal.ledger.plan.steps[1], table_of(D_2, 1.0, "M_1"), BY_M_0, 1.0)
    assert files(run_dir.root) == before
    assert journal.ledger.records[1].state == "planned"


# --- what is refused ---


def test_steps_of_other_names_are_refused_before_anything_is_written(run_dir: RunDir) -> None:
    other = dataclasses.replace(PLAN, steps=(FIRST, dataclasses.replace(SECOND, name="hard")))
    with pytest.raises(ConfigError, match="name of step 2 is 'hard', and it was 'step-2'"):
        Journal(run_dir, OneRank(), other, Ledger.begin(PLAN, IDENTITY))
    assert not run_dir.root.exists()


@pytest.mark.parametrize("name", ["sdpo", "sdpo/heldout", "step-1", "step-2/checkpoint-5"])
def test_link_is_refused_before_anything_is_written(run_dir: RunDir, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run_dir.root / name).parent.mkdir(parents=True)
    (run_dir.root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=rf"^{re.escape(str(run_dir.root / name))} is a symbolic link to "):
        begin(run_dir)
    assert files(tmp_path) == set()


# --- models ---


def test_superseded_models_go_when_the_next_one_stands(run_dir: RunDir) -> None:
    journal = begin(run_dir, make_plan(export_steps="last"))
    journal.record_prepared([(FIRST, table_of(D_1, -1.0, "M_0"))], {})
    for step in (FIRST, SECOND):
        write_model(journal, step.name)
        journal.publish(step)
        assert (run_dir.step(FIRST) / "config.json").exists()
        journal.record_export(step, 1.0)
    assert [record.kept for record in journal.ledger.records] == [False, True]
    assert not run_dir.step(FIRST).exists()
    assert (run_dir.step(SECOND) / "weights").read_text() == "step-2"


def test_superseded_models_go_where_the_plan_says_so_only_now(run_dir: RunDir) -> None:
    ledger = run(FakeHost(), run_dir)
    Journal(run_dir, OneRank(), make_plan(export_steps="last"), ledger)
    assert [record.kept for record in Ledger.load(run_dir.ledger).records] == [False, True]
    assert (run_dir.step(FIRST).exists(), run_dir.step(SECOND).exists()) == (False, True)


def test_nothing_is_removed_where_all_models_are_kept(run_dir: RunDir) -> None:
    ledger = run(FakeHost(), run_dir)
    before = files(run_dir.root)
    assert Journal(run_dir, OneRank(), PLAN, ledger).ledger == ledger
    assert files(run_dir.root) == before


# --- ranks ---


def test_rank_0_alone_writes_and_its_ledger_is_every_ranks(run_dir: RunDir, tmp_path: Path) -> None:
    def act(journal: Journal) -> Ledger:
        journal.record_prepared([], {})
        journal.record_reference(FIRST, table_of(D_1, -1.0, "M_0"), BY_M_0, 1.0)
        if journal.staging.parent == run_dir.folder:
            write_model(journal, "1.0")
        journal.publish(FIRST)
        journal.record_export(FIRST, 1.0)
        return journal.ledger

    first, elsewhere = RankZero(), RunDir(tmp_path / "rank-1")
    ledger = act(Journal(run_dir, first, PLAN, Ledger.begin(PLAN, IDENTITY)))
    # Its own new ledger has another run id.
    other = Journal(elsewhere, OtherRank(first.answers), PLAN, Ledger.begin(PLAN, IDENTITY))
    assert act(other) == ledger == Ledger.load(run_dir.ledger)
    assert not elsewhere.root.exists()


# --- the end ---


@pytest.fixture
def finished(run_dir: RunDir) -> Ledger:
    rows = [D_1] * 3
    return run(FakeHost(rows), run_dir, make_plan(rows))


@pytest.mark.parametrize("keep_last", [True, False])
def test_closing_a_run_records_it_and_takes_away_the_double(run_dir: RunDir, finished: Ledger, keep_last: bool) -> None:
    close_run(run_dir, keep_last)
    final = read_seal(run_dir.root)
    assert final.about == {"run": finished.run_id, "model": "M_3"}
    expected = dataclasses.replace(finished, saved=True, final=final.digest).record(3, kept=keep_last)
    assert Ledger.load(run_dir.ledger) == expected
    assert ("step-3/config.json" in files(run_dir.root)) is keep_last
    assert {"step-1/config.json", "step-2/config.json"} <= files(run_dir.root)
    close_run(run_dir, keep_last)
    assert Ledger.load(run_dir.ledger) == expected


def test_double_goes_only_when_the_ledger_says_so(
    run_dir: RunDir, finished: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that died in between would not find M_T."""

    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sdpo_plugin.run_dir.journal.write_stored", fail)
        with pytest.raises(OutputError, match="No space left"):
            close_run(run_dir, keep_last=False)
    assert find_start(run_dir) == Start(finished, Action("save", 0, "M_3"), run_dir.root / "step-3")


def test_run_with_a_damaged_ledger_is_not_closed(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    run_dir.ledger.write_text("{")
    with pytest.raises(OutputError, match="is not a ledger of schema version 2"):
        close_run(run_dir, keep_last=True)
    assert "sdpo_seal.json" not in {path.name for path in run_dir.root.iterdir()}
