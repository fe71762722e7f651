"""A run that died is resumed: what is done again, what is not, and with which tables."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.plan import Plan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import load_table, read_table, save_table
from sdpo_plugin.runner import run_steps
from tests.dead_runs import checkpoint, die, resume
from tests.fakes import CALLS, D_1, D_2, EXTERNAL, FakeHost, HostDiedError, content, make_plan, run, table_of

# died in; what the next process loads; the first of CALLS that it repeats
DEATHS = [
    ("early tables", [], "early tables"),
    ("export the start", [], "early tables"),
    ("table of D_1 by M_0", ["load M_0 from start"], "table of D_1 by M_0"),
    ("held-out tables by M_0, called M_0", ["load M_0 from start"], "table of D_1 by M_0"),
    ("settings of step-1", ["load M_0 from start"], "settings of step-1"),
    ("train M_0 on D_1", ["load M_0 from start"], "settings of step-1"),
    ("export M_1 to staging", ["load M_0 from start"], "settings of step-1"),
    ("table of D_2 by M_1", ["load M_1 from step-1"], "table of D_2 by M_1"),
    ("held-out tables by M_1, called M_1", ["load M_1 from step-1"], "table of D_2 by M_1"),
    ("settings of step-2", ["load M_1 from step-1"], "settings of step-2"),
    ("train M_1 on D_2", ["load M_1 from step-1"], "settings of step-2"),
    ("export M_2 to staging", ["load M_1 from step-1"], "settings of step-2"),
    ("held-out tables by M_2, called M_2", ["load M_2 from step-2"], "held-out tables by M_2, called M_2"),
]


@pytest.mark.parametrize("export_steps", ["all", "last"])
@pytest.mark.parametrize(("died_in", "loads", "first"), DEATHS, ids=[died_in for died_in, *_ in DEATHS])
def test_run_is_resumed_where_it_died_and_repeats_nothing_that_was_done(
    run_dir: RunDir, died_in: str, loads: list[str], first: str, export_steps: str
) -> None:
    plan, host = make_plan(export_steps=export_steps), FakeHost(adapter=True)
    dead = die(run_dir, died_in, FakeHost(adapter=True), plan)
    ledger = resume(run_dir, host, plan)
    assert host.calls == loads + CALLS[CALLS.index(first) :]
    assert (ledger.run_id, ledger.finished) == (dead.run_id, True)
    assert [table.model for table in host.trained_with] == ["M_0", "M_1"][2 - len(host.trained_with) :]
    assert ledger == Ledger.load(run_dir.ledger)


@pytest.mark.parametrize("died_in", [died_in for died_in, *_ in DEATHS])
def test_tables_and_models_are_those_of_an_uninterrupted_run(run_dir: RunDir, died_in: str) -> None:
    whole_dir = RunDir(run_dir.root.with_name("whole"))
    whole = run(FakeHost(adapter=True), whole_dir)
    die(run_dir, died_in, FakeHost(adapter=True))
    ledger = resume(run_dir, FakeHost(adapter=True))
    assert ledger.tables == whole.tables
    for name in ("sdpo/start", "step-1", "step-2"):
        assert (run_dir.root / name / "weights.json").read_bytes() == (
            whole_dir.root / name / "weights.json"
        ).read_bytes()


@pytest.mark.parametrize(
    ("number", "calls"),
    [
        (1, CALLS[CALLS.index("settings of step-1") :]),
        (2, ["load M_1 from step-1", *CALLS[CALLS.index("table of D_2 by M_1") :]]),
        (3, ["load M_1 from step-1", *CALLS[CALLS.index("settings of step-2") :]]),
        (5, ["load M_2 from step-2"]),
    ],
    ids=["before-step-1", "after-step-1", "before-step-2", "end"],
)
def test_host_that_died_in_its_report_has_lost_nothing(run_dir: RunDir, number: int, calls: list[str]) -> None:
    dying, told = FakeHost(), []

    def tell() -> None:
        told.append(None)
        if len(told) == number:
            raise HostDiedError("report")

    dying.on_report = tell
    with pytest.raises(HostDiedError):
        run(dying, run_dir)
    host = FakeHost()
    assert resume(run_dir, host).finished
    assert host.calls == calls


def test_half_trained_step_is_resumed_from_its_checkpoint(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    newest, host = checkpoint(run_dir, 2, 3), FakeHost()
    ledger = resume(run_dir, host)
    # Nothing is loaded: the checkpoint holds the policy. (The fake's is M_0, as it does not read checkpoints.)
    assert host.calls[:2] == ["settings of step-2", "train M_0 on D_2"]
    assert host.trainings[0].checkpoint == newest
    assert host.trainings[0].about == {
        "run": ledger.run_id,
        "step": "step-2",
        "reference": ledger.tables["sdpo/reference/step-2.safetensors"],
    }
    # what the dead run had spent up to the checkpoint counts: the fake says 1,000 s
    assert 1000 < float(ledger.records[1].train_seconds or 0) < 1060


def test_checkpoint_serves_the_step_under_way_and_no_other(run_dir: RunDir) -> None:
    die(run_dir, "train M_0 on D_1")
    newest, host = checkpoint(run_dir, 1, 2), FakeHost()
    resume(run_dir, host)
    assert [training.checkpoint for training in host.trainings] == [newest, None]


def test_step_is_resumed_against_the_table_that_it_began_with(run_dir: RunDir) -> None:
    """Also where the model that is in memory would give other log-probs."""
    ledger = die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 3)
    host = FakeHost()
    resume(run_dir, host)
    assert content(host.trained_with[0]) == content(table_of(D_2, 1.0, "M_1"))
    assert host.trained_with[0].digest() == ledger.tables["sdpo/reference/step-2.safetensors"]


def test_run_that_starts_each_step_from_the_base_model_does_so_when_it_is_resumed(run_dir: RunDir) -> None:
    plan = make_plan(policy_init="base")
    die(run_dir, "table of D_2 by M_1", FakeHost(adapter=True), plan)
    host = FakeHost(adapter=True)
    resume(run_dir, host, plan)
    assert host.calls[:6] == [
        "load M_1 from step-1",
        "table of D_2 by M_1",
        "held-out tables by M_1, called M_1",
        "report",
        "settings of step-2",
        "restart from M_1",
    ]


def test_finished_run_only_loads_its_last_model(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    host = FakeHost()
    resume(run_dir, host)
    assert host.calls == ["load M_2 from step-2"]


def test_plan_may_be_written_otherwise_when_the_run_is_resumed(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    plan = make_plan(export_steps="last")
    ledger = resume(run_dir, FakeHost(), plan)
    assert ledger.plan == plan
    assert [record.kept for record in ledger.records] == [False, True]


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"null", b"{}", b'{"schema_version": 2}', b"\xff"], ids=repr
)
def test_plan_json_is_not_needed(run_dir: RunDir, content: bytes | None) -> None:
    """It is a copy for people: a run is resumed without it, and writes it again."""
    die(run_dir, "train M_1 on D_2")
    before = run_dir.plan.read_bytes()
    run_dir.plan.unlink() if content is None else run_dir.plan.write_bytes(content)
    whole = run(FakeHost(), RunDir(run_dir.root.with_name("whole")))
    ledger = resume(run_dir, FakeHost())
    assert (ledger.finished, ledger.plan, ledger.tables) == (True, whole.plan, whole.tables)
    assert run_dir.plan.read_bytes() == before


def test_superseded_model_goes_also_where_the_run_died_before_it_could(run_dir: RunDir) -> None:
    plan = make_plan(export_steps="last")
    ledger = die(run_dir, "held-out tables by M_2, called M_2")
    assert [record.kept for record in ledger.records] == [True, True]
    resume(run_dir, FakeHost(), plan)
    assert not (run_dir.root / "step-1" / "config.json").exists()
    assert (run_dir.root / "step-2" / "config.json").exists()


# --- tables ---


def test_lost_table_is_computed_again_and_trained_against(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    run_dir.reference(ledger.plan.steps[1]).unlink()
    host = FakeHost()
    again = resume(run_dir, host)
    assert host.calls == ["load M_1 from step-1", *CALLS[CALLS.index("table of D_2 by M_1") :]]
    assert again.tables == run(FakeHost(), RunDir(run_dir.root.with_name("whole"))).tables


def refusal(run_dir: RunDir, host: FakeHost, plan: Plan | None = None) -> str:
    with pytest.raises(ReferenceTableError) as caught:
        resume(run_dir, host, plan)
    assert [call for call in host.calls if call.startswith("train")] == []
    return str(caught.value)


REMEDY = (
    ". A step is not trained against it: restore it, or, with reference: previous, delete the step's table in "
    "sdpo/reference, and M_{t-1} computes it again; else train into another output_dir."
)


def test_damaged_reference_table_is_not_trained_against(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    path = run_dir.reference(ledger.plan.steps[1])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert refusal(run_dir, FakeHost()) == (
        f"{path}: the reference table does not fit its digest; the file is damaged{REMEDY}"
    )
    # The remedy helps.
    path.unlink()
    assert resume(run_dir, FakeHost()).finished


def test_reference_table_of_another_run_is_not_trained_against(run_dir: RunDir) -> None:
    """Of the same rows and under a model of the same name, and whole."""
    ledger = die(run_dir, "train M_1 on D_2")
    path = run_dir.reference(ledger.plan.steps[1])
    save_table(table_of(D_2, 0.75, "M_1"), path)
    load_table(path).require_rows(4, str(make_plan().steps[1].rows_digest))
    assert refusal(run_dir, FakeHost()) == f"{path} is a table of another run than the ledger vouches for{REMEDY}"


@pytest.mark.parametrize("model", ["M_0", EXTERNAL])
def test_lost_table_of_a_fixed_reference_is_not_made_up(run_dir: RunDir, model: str) -> None:
    plan = make_plan(reference="base" if model == "M_0" else EXTERNAL)
    ledger = die(run_dir, "train M_1 on D_2", FakeHost(early=[model]), plan)
    path = run_dir.reference(ledger.plan.steps[1])
    path.unlink()
    message = refusal(run_dir, FakeHost(early=[model]), plan)
    assert re.match(rf"cannot read the reference table {re.escape(str(path))}: .*\. A step is not trained", message)


def test_damaged_held_out_table_of_the_reference_stops_the_step(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    path = run_dir.heldout("M_1", 0)
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal(run_dir, FakeHost())
    assert message.startswith(f"cannot read the reference table {path}: ")
    assert message.endswith(REMEDY)
    # The remedy helps: the table is computed again, and with it those of the held-out sets.
    run_dir.reference(ledger.plan.steps[1]).unlink()
    assert resume(run_dir, FakeHost()).finished


def test_tables_that_the_plan_was_made_with_stay_vouched_for(run_dir: RunDir) -> None:
    path = run_dir.pool(1)
    table = table_of(D_1, -1.0, "M_0")
    save_table(table, path)
    begun = Ledger.begin(make_plan(), {}, {run_dir.key(path): table.digest()})
    host = FakeHost()
    journal = Journal(run_dir, host, make_plan(), begun)
    run_steps(make_plan(), host, journal)
    assert journal.ledger.tables[run_dir.key(path)] == table.digest()
    assert len(journal.ledger.tables) == 9


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, spoil], ids=["missing", "torn"])
@pytest.mark.parametrize("call", ["train M_1 on D_2", "held-out tables by M_2, called M_2"])
def test_table_that_no_step_needs_any_more_ends_no_run(
    run_dir: RunDir, call: str, damage: Callable[[Path], None]
) -> None:
    """The reference of a finished step, held-out rows under a model that is no reference now, measures."""
    early = FakeHost(early=["M_0"])  # easy to hard: every D_t has a table of M_0
    ledger = die(run_dir, call, early)
    first, second = ledger.plan.steps
    spare = [run_dir.reference(first), run_dir.heldout("M_0", 0), run_dir.log_probs("M_0", second)]
    for path in spare:
        damage(path)
    seen = []
    host = FakeHost(early=["M_0"])
    host.on_report = lambda: seen.append(build_report(run_dir))
    assert resume(run_dir, host).finished
    assert seen
    for report in seen:
        assert report["steps"][0]["gamma_ref"] is None
        assert report["train"]["gamma"][0] == [None, None]
        assert report["heldout"]["gamma"][0][0] is None
        assert [warning.split(" cannot be used")[0] for warning in report["warnings"]] == [
            run_dir.key(path) for path in (spare[0], spare[2], spare[1])
        ]
    assert [step["gamma_ref"] is None for step in seen[-1]["steps"]] == [True, False]


def test_table_that_lays_out_the_steps_has_a_remedy_of_its_own(run_dir: RunDir) -> None:
    """No step's table can be deleted instead."""
    path = run_dir.pool(1)
    ledger = Ledger.begin(make_plan(), {}, {run_dir.key(path): "c" * 64})
    expected = (
        rf"cannot read the reference table {re.escape(str(path))}: .*\. The steps cannot be laid out without it, and "
        r"the base model is not asked again once a run has begun: restore it, or train into another output_dir\."
    )
    with pytest.raises(ReferenceTableError, match=f"^{expected}$"):
        read_table(run_dir, ledger, path)
