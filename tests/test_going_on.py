"""A run that died goes on: what is done again, what is not, and with which tables."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import Plan
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.report import build_report
from sdpo_plugin.resume import find_start
from sdpo_plugin.runner import run_steps
from sdpo_plugin.tables import read_table
from tests.dead_runs import checkpoint, die
from tests.fakes import CALLS, D_1, D_2, EXTERNAL, FakeHost, content, make_plan, run, score


def go_on(run_dir: RunDir, host: FakeHost, plan: Plan | None = None) -> Ledger:
    start = find_start(run_dir)
    assert start.ledger is not None
    return run_steps(plan or make_plan(), host, run_dir, start.ledger, host.progress, start)


# died in; what the next process loads; the first of CALLS that it repeats
DEATHS = [
    ("score before step 1", [], "score before step 1"),
    ("export the start", [], "score before step 1"),
    ("score D_1 by M_0", ["load M_0 from start"], "score D_1 by M_0"),
    ("score held-out by M_0, called M_0", ["load M_0 from start"], "score D_1 by M_0"),
    ("settings of step-1", ["load M_0 from start"], "settings of step-1"),
    ("train M_0 on D_1", ["load M_0 from start"], "settings of step-1"),
    ("export M_1 to staging", ["load M_0 from start"], "settings of step-1"),
    ("score D_2 by M_1", ["load M_1 from step-1"], "score D_2 by M_1"),
    ("score held-out by M_1, called M_1", ["load M_1 from step-1"], "score D_2 by M_1"),
    ("settings of step-2", ["load M_1 from step-1"], "settings of step-2"),
    ("train M_1 on D_2", ["load M_1 from step-1"], "settings of step-2"),
    ("export M_2 to staging", ["load M_1 from step-1"], "settings of step-2"),
    ("score held-out by M_2, called M_2", ["load M_2 from step-2"], "score held-out by M_2, called M_2"),
]


@pytest.mark.parametrize("export_steps", ["all", "last"])
@pytest.mark.parametrize(("died_in", "loads", "first"), DEATHS, ids=[died_in for died_in, *_ in DEATHS])
def test_run_goes_on_where_it_died_and_repeats_nothing_that_was_done(
    run_dir: RunDir, died_in: str, loads: list[str], first: str, export_steps: str
) -> None:
    plan, host = make_plan(export_steps=export_steps), FakeHost(adapter=True)
    dead = die(run_dir, died_in, FakeHost(adapter=True), plan)
    ledger = go_on(run_dir, host, plan)
    assert host.calls == loads + CALLS[CALLS.index(first) :]
    assert (ledger.run, ledger.finished) == (dead.run, True)
    assert [table.model for table in host.trained_with] == ["M_0", "M_1"][2 - len(host.trained_with) :]
    assert ledger == Ledger.load(run_dir.ledger)


@pytest.mark.parametrize("died_in", [died_in for died_in, *_ in DEATHS])
def test_tables_and_models_are_those_of_an_uninterrupted_run(run_dir: RunDir, died_in: str) -> None:
    whole_dir = RunDir(run_dir.root.with_name("whole"))
    whole = run(FakeHost(adapter=True), whole_dir)
    die(run_dir, died_in, FakeHost(adapter=True))
    ledger = go_on(run_dir, FakeHost(adapter=True))
    assert ledger.tables == whole.tables
    for name in ("sdpo/start", "step-1", "step-2"):
        assert (run_dir.root / name / "weights.json").read_bytes() == (
            whole_dir.root / name / "weights.json"
        ).read_bytes()


def test_host_that_died_as_it_told_of_its_progress_has_lost_nothing(run_dir: RunDir) -> None:
    die(run_dir, "progress")
    host = FakeHost()
    assert go_on(run_dir, host).finished
    assert host.calls == ["load M_1 from step-1", *CALLS[CALLS.index("score D_2 by M_1") :]]


def test_half_trained_step_goes_on_from_its_checkpoint(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    newest, host = checkpoint(run_dir, 2, 3), FakeHost()
    ledger = go_on(run_dir, host)
    # Nothing is loaded: the checkpoint holds the policy. (The fake's is M_0, as it does not read checkpoints.)
    assert host.calls[:2] == ["settings of step-2", "train M_0 on D_2"]
    assert host.trainings[0].checkpoint == newest
    assert host.trainings[0].about == {
        "run": ledger.run,
        "step": "step-2",
        "reference": ledger.tables["sdpo/reference/step-2.safetensors"],
    }
    # what the dead run had spent up to the checkpoint counts: the fake says 1,000 s
    assert 1000 < float(ledger.steps[1].train_seconds or 0) < 1060


def test_checkpoint_serves_the_step_under_way_and_no_other(run_dir: RunDir) -> None:
    die(run_dir, "train M_0 on D_1")
    newest, host = checkpoint(run_dir, 1, 2), FakeHost()
    go_on(run_dir, host)
    assert [training.checkpoint for training in host.trainings] == [newest, None]


def test_step_goes_on_against_the_table_that_it_began_with(run_dir: RunDir) -> None:
    """Also where the model that is in memory would score otherwise."""
    ledger = die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 3)
    host = FakeHost()
    go_on(run_dir, host)
    assert content(host.trained_with[0]) == content(score(D_2, 1.0, "M_1"))
    assert host.trained_with[0].checksum() == ledger.tables["sdpo/reference/step-2.safetensors"]


def test_run_that_starts_each_step_from_the_base_model_does_so_when_it_goes_on(run_dir: RunDir) -> None:
    plan = make_plan(policy_init="base")
    die(run_dir, "score D_2 by M_1", FakeHost(adapter=True), plan)
    host = FakeHost(adapter=True)
    go_on(run_dir, host, plan)
    assert host.calls[:5] == [
        "load M_1 from step-1",
        "score D_2 by M_1",
        "score held-out by M_1, called M_1",
        "settings of step-2",
        "restart from M_1",
    ]


def test_finished_run_only_loads_its_last_model(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    host = FakeHost()
    go_on(run_dir, host)
    assert host.calls == ["load M_2 from step-2"]


def test_plan_may_be_written_otherwise_when_the_run_goes_on(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    plan = make_plan(export_steps="last")
    ledger = go_on(run_dir, FakeHost(), plan)
    assert ledger.plan_fingerprint == plan.fingerprint() != make_plan().fingerprint()
    assert [step.kept for step in ledger.steps] == [False, True]


def test_superseded_model_goes_also_where_the_run_died_before_it_could(run_dir: RunDir) -> None:
    plan = make_plan(export_steps="last")
    ledger = die(run_dir, "score held-out by M_2, called M_2")
    assert [step.kept for step in ledger.steps] == [True, True]
    go_on(run_dir, FakeHost(), plan)
    assert not (run_dir.root / "step-1" / "config.json").exists()
    assert (run_dir.root / "step-2" / "config.json").exists()


# --- tables ---


def test_lost_table_is_scored_again_and_trained_against(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    run_dir.reference(ledger.steps[1]).unlink()
    host = FakeHost()
    again = go_on(run_dir, host)
    assert host.calls == ["load M_1 from step-1", *CALLS[CALLS.index("score D_2 by M_1") :]]
    assert again.tables == run(FakeHost(), RunDir(run_dir.root.with_name("whole"))).tables


def refusal(run_dir: RunDir, host: FakeHost, plan: Plan | None = None) -> str:
    with pytest.raises(ReferenceTableError) as caught:
        go_on(run_dir, host, plan)
    assert [call for call in host.calls if call.startswith("train")] == []
    return str(caught.value)


REMEDY = (
    ". A step is not trained against it: restore it, or, with reference: previous, delete the step's table in "
    "sdpo/reference, and M_{t-1} scores the step again; else train into another output_dir."
)


def test_damaged_reference_table_is_not_trained_against(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    path = run_dir.reference(ledger.steps[1])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert refusal(run_dir, FakeHost()) == (
        f"{path}: the reference table does not fit its checksum; the file is damaged{REMEDY}"
    )
    # The remedy helps.
    path.unlink()
    assert go_on(run_dir, FakeHost()).finished


def test_reference_table_of_another_run_is_not_trained_against(run_dir: RunDir) -> None:
    """Of the same rows and under a model of the same name, and whole."""
    ledger = die(run_dir, "train M_1 on D_2")
    path = run_dir.reference(ledger.steps[1])
    score(D_2, 0.75, "M_1").save(path)
    ReferenceTable.load(path).require_rows(4, str(make_plan().steps[1].rows_digest))
    assert refusal(run_dir, FakeHost()) == f"{path} is a table of another run than the ledger vouches for{REMEDY}"


@pytest.mark.parametrize("model", ["M_0", EXTERNAL])
def test_lost_table_of_a_fixed_reference_is_not_made_up(run_dir: RunDir, model: str) -> None:
    plan = make_plan(reference="base" if model == "M_0" else EXTERNAL)
    ledger = die(run_dir, "train M_1 on D_2", FakeHost(early=[model]), plan)
    path = run_dir.reference(ledger.steps[1])
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
    # The remedy helps: the step is scored again, and with it the held-out sets.
    run_dir.reference(ledger.steps[1]).unlink()
    assert go_on(run_dir, FakeHost()).finished


def test_tables_that_the_plan_was_made_with_stay_vouched_for(run_dir: RunDir) -> None:
    path = run_dir.pool(1)
    table = score(D_1, -1.0, "M_0")
    table.save(path)
    begun = Ledger.begin(make_plan(), {}, {run_dir.key(path): table.checksum()})
    host = FakeHost()
    ledger = run_steps(make_plan(), host, run_dir, begun, host.progress)
    assert ledger.tables[run_dir.key(path)] == table.checksum()
    assert len(ledger.tables) == 9


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, spoil], ids=["missing", "torn"])
@pytest.mark.parametrize("call", ["train M_1 on D_2", "score held-out by M_2, called M_2"])
def test_table_that_no_step_needs_any_more_ends_no_run(
    run_dir: RunDir, call: str, damage: Callable[[Path], None]
) -> None:
    """The reference of a finished step, held-out rows under a model that is no reference now, diagnostics."""
    early = FakeHost(early=["M_0"])  # easy to hard: M_0 has scored every step
    ledger = die(run_dir, call, early)
    spare = [run_dir.reference(ledger.steps[0]), run_dir.heldout("M_0", 0), run_dir.score("M_0", make_plan().steps[1])]
    for path in spare:
        damage(path)
    seen = []
    host = FakeHost(early=["M_0"])
    host.progress = lambda: seen.append(build_report(run_dir))  # type: ignore[method-assign]
    assert go_on(run_dir, host).finished
    assert seen
    for report in seen:
        assert report["steps"][0]["gamma_ref"] is None
        assert report["gamma"][0] == [None, None]
        assert report["eval_gamma"][0][0] is None
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
