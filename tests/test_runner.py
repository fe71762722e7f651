"""The algorithm, driven by a fake host: who is called when, with what, and what is on disk at each moment."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import Plan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.runner import run_steps
from tests.fakes import D_1, D_2, EXTERNAL, HELDOUT, FakeHost, HostDiedError, digest, make_plan

CALLS = [
    "score before step 1",
    "score D_1 by M_0",
    "score held-out by M_0, called M_0",
    "train M_0 on D_1",
    "export M_1 to step-1",
    "progress",
    "score D_2 by M_1",
    "score held-out by M_1, called M_1",
    "train M_1 on D_2",
    "export M_2 to step-2",
    "progress",
    "score held-out by M_2, called M_2",
    "progress",
]


def run(host: FakeHost, run_dir: RunDir, plan: Plan | None = None) -> Ledger:
    return run_steps(plan or make_plan(), host, run_dir, host.progress)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished run, for tests that only look."""

    host: FakeHost
    ledger: Ledger
    dir: RunDir


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    host, run_dir = FakeHost(), RunDir(tmp_path_factory.mktemp("done"))
    return Done(host, run(host, run_dir), run_dir)


# --- order ---


def test_order_of_calls(done: Done) -> None:
    assert done.host.calls == CALLS


def test_order_of_calls_when_only_the_last_model_is_kept(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir, make_plan(export_steps="last"))
    assert host.calls == [call for call in CALLS if not call.startswith("export")]


@pytest.mark.parametrize("num_steps", [1, 3], ids=lambda number: f"{number}-steps")
def test_any_number_of_steps(run_dir: RunDir, num_steps: int) -> None:
    host = FakeHost(rows=[D_1] * num_steps)
    run(host, run_dir, make_plan(rows=[D_1] * num_steps))
    assert [call for call in host.calls if call.startswith("train")] == [
        f"train M_{index - 1} on D_{index}" for index in range(1, num_steps + 1)
    ]
    assert host.calls.count("progress") == num_steps + 1


def test_other_ranks_are_called_in_the_same_order_and_write_nothing(run_dir: RunDir) -> None:
    first, second = FakeHost(), FakeHost(rank=1)
    run(first, run_dir)
    elsewhere = RunDir(run_dir.root.with_name("rank-1"))
    run(second, elsewhere)
    assert second.calls == [call for call in CALLS if call != "progress"]
    assert second.rank_0_actions == first.rank_0_actions
    assert not elsewhere.root.exists()


# --- what is handed over ---


def test_reference_of_a_step_is_the_very_table_scored_before_it(done: Done) -> None:
    assert len(done.host.trained_with) == 2
    assert all(trained is scored for trained, scored in zip(done.host.trained_with, done.host.scored, strict=True))


def test_references_get_stricter_from_model_to_model(done: Done) -> None:
    assert [table.model for table in done.host.trained_with] == ["M_0", "M_1"]
    # γ = 2θx: for D_1 under M_0 θ = −1, for D_2 under M_1 θ = 1
    assert [(table.chosen - table.rejected).tolist() for table in done.host.trained_with] == [
        [-2, -4, -6],
        [2, -2, 4, 12],
    ]


def test_held_out_tables_of_a_step_are_those_of_its_reference(done: Done) -> None:
    assert [{name: table.model for name, table in tables.items()} for tables in done.host.eval_tables] == [
        {"val": "M_0", "test": "M_0"},
        {"val": "M_1", "test": "M_1"},
    ]


def test_export_goes_to_the_directory_of_the_step(done: Done) -> None:
    assert done.host.exported_to == [done.dir.root / "step-1", done.dir.root / "step-2"]


# --- what is on disk ---


def test_ledger_on_disk_at_each_call(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []

    def look(call: str) -> None:
        ledger = Ledger.load(run_dir.ledger)
        seen.append((call, *(step.state for step in ledger.steps), ledger.finished))

    host.watch = look
    run(host, run_dir)
    states = [
        ("planned", "planned", False),
        ("planned", "planned", False),
        ("planned", "planned", False),
        ("training", "planned", False),
        ("trained", "planned", False),
        ("exported", "planned", False),
        ("exported", "planned", False),
        ("exported", "planned", False),
        ("exported", "training", False),
        ("exported", "trained", False),
        ("exported", "exported", False),
        ("exported", "exported", False),
        ("exported", "exported", True),
    ]
    assert seen == [(call, *state) for call, state in zip(CALLS, states, strict=True)]


def test_states_are_written_in_this_order(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []
    host.after_action = lambda: seen.append(
        Ledger.load(run_dir.ledger).steps[0].state if run_dir.ledger.exists() else "no ledger"
    )
    run(host, run_dir)
    assert list(dict.fromkeys(seen)) == ["no ledger", "planned", "scored", "training", "trained", "exported"]


def test_plan_is_on_disk_before_its_ledger(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []
    host.after_action = lambda: seen.append((run_dir.plan.exists(), run_dir.ledger.exists()))
    run(host, run_dir)
    assert seen[:3] == [(False, False), (True, False), (True, True)]


def test_tables_of_a_run_that_finished_no_step_are_removed(run_dir: RunDir) -> None:
    stale = run_dir.root / "sdpo" / "scores" / "M_0-step-9.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier run")
    run(FakeHost(), run_dir)
    assert not stale.exists()
    assert sorted(path.name for path in run_dir.reference(make_plan().steps[0]).parent.iterdir()) == [
        "step-1.safetensors",
        "step-2.safetensors",
    ]


def test_record_never_stands_without_the_data_it_vouches_for(run_dir: RunDir) -> None:
    host, plan, checked = FakeHost(), make_plan(), []

    def look() -> None:
        if not run_dir.ledger.exists():
            return
        ledger = Ledger.load(run_dir.ledger)
        scored = [step for step, record in zip(plan.steps, ledger.steps, strict=True) if record.state != "planned"]
        models = [step.reference for step in scored] + ["M_2"] * ledger.finished
        for step in scored:
            ReferenceTable.load(run_dir.reference(step)).require_rows(step.num_rows, str(step.rows_digest))
        for model in models:
            assert {ReferenceTable.load(run_dir.heldout(model, column)).model for column in (0, 1)} == {model}
        checked.append(len(models))

    host.after_action = look
    run(host, run_dir)
    assert set(checked) == {0, 1, 2, 3}


def test_table_on_disk_is_the_table_that_trains(done: Done) -> None:
    plan = make_plan()
    for step, trained in zip(plan.steps, done.host.trained_with, strict=True):
        loaded = ReferenceTable.load(done.dir.reference(step))
        assert np.array_equal([loaded.chosen, loaded.rejected], [trained.chosen, trained.rejected])
        assert (loaded.model, loaded.rows_digest) == (trained.model, trained.rows_digest)


@pytest.mark.parametrize("model", ["M_0", "M_1", "M_2"])
def test_held_out_tables_on_disk_are_each_of_their_own_set(done: Done, model: str) -> None:
    tables = [ReferenceTable.load(done.dir.heldout(model, column)) for column in (0, 1)]
    assert [(table.model, table.rows_digest) for table in tables] == [
        (model, digest(HELDOUT["val"])),
        (model, digest(HELDOUT["test"])),
    ]


def test_files_of_a_finished_run(done: Done) -> None:
    assert {str(path.relative_to(done.dir.root)) for path in done.dir.root.rglob("*") if path.is_file()} == {
        "sdpo/plan.json",
        "sdpo/ledger.json",
        "sdpo/reference/step-1.safetensors",
        "sdpo/reference/step-2.safetensors",
        *(f"sdpo/heldout/{model_name(model)}-{column}.safetensors" for model in (0, 1, 2) for column in (1, 2)),
    }


def test_run_without_held_out_sets_writes_none(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir, make_plan(heldout={}))
    assert not (run_dir.root / "sdpo" / "heldout").exists()


def test_plan_on_disk_is_the_plan(done: Done) -> None:
    assert Plan.from_json(json.loads(done.dir.plan.read_text())) == make_plan()


def test_returned_ledger_is_the_one_on_disk(done: Done) -> None:
    assert done.ledger == Ledger.load(done.dir.ledger)


def test_ledger_belongs_to_the_plan(done: Done) -> None:
    assert done.ledger.plan_fingerprint == make_plan().fingerprint()


def test_ledger_keeps_what_training_gave(done: Done) -> None:
    assert [(step.first_loss, step.final_loss, step.num_optimizer_steps) for step in done.ledger.steps] == [
        (math.log(2), 0.7 - 0.1 * 1, 2),  # 3 rows planned 3 updates, the fake makes one fewer
        (math.log(2), 0.7 - 0.1 * 2, 3),
    ]


def test_ledger_keeps_the_time_of_each_part(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    host, now = FakeHost(), 100.0
    seconds = {
        "score before": 100.0,
        "score D": 1.0,
        "score held-out": 2.0,
        "train": 10.0,
        "export": 5.0,
        "progress": 50.0,
    }

    def spend(call: str) -> None:
        nonlocal now
        now += next(cost for start, cost in seconds.items() if call.startswith(start))

    host.watch = spend
    monkeypatch.setattr("sdpo_plugin.runner.time.perf_counter", lambda: now)
    ledger = run(host, run_dir)
    # scoring: D_t 1 s and held-out 2 s; what is done before step 1 and what progress takes belong to no step
    assert [(step.score_seconds, step.train_seconds, step.export_seconds) for step in ledger.steps] == [(3, 10, 5)] * 2


def test_step_that_is_not_exported_has_no_export_time(run_dir: RunDir) -> None:
    ledger = run(FakeHost(), run_dir, make_plan(export_steps="last"))
    assert [(step.state, step.export_seconds) for step in ledger.steps] == [("trained", None)] * 2


# --- other references, other starts ---


def trains(host: FakeHost) -> list[tuple[str, float]]:
    """What each step was trained against: the reference's name and mean γ."""
    return [(table.model, float((table.chosen - table.rejected).mean())) for table in host.trained_with]


def files_in(run_dir: RunDir, name: str) -> set[str]:
    return {path.name for path in (run_dir.root / "sdpo" / name).glob("*")}


def test_fixed_base_reference_is_scored_before_step_1_and_never_again(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan(reference="base"))
    assert host.calls == [call for call in CALLS if not call.startswith("score D_")]
    # γ = 2θx with θ = −1 for both: D_1 = 1, 2, 3 and D_2 = 1, −1, 2, 6
    assert trains(host) == [("M_0", -4.0), ("M_0", -4.0)]
    assert all(trained is host.scored_early["M_0", step] for step, trained in enumerate(host.trained_with, 1))
    assert files_in(run_dir, "reference") == {"step-1.safetensors", "step-2.safetensors"}
    assert files_in(run_dir, "scores") == set()


def test_fixed_base_reference_evaluates_against_the_base_model(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan(reference="base"))
    assert [{table.model for table in tables.values()} for tables in host.eval_tables] == [{"M_0"}, {"M_0"}]


def test_held_out_sets_are_scored_by_every_model_whatever_the_reference(run_dir: RunDir) -> None:
    """They tell how M_t does; the reference is another matter."""
    run(FakeHost(early=[EXTERNAL]), run_dir, make_plan(reference=EXTERNAL))
    for column, name in enumerate(HELDOUT):
        for model in ("M_0", "M_1", "M_2"):
            table = ReferenceTable.load(run_dir.heldout(model, column))
            assert (table.model, table.rows_digest) == (model, digest(HELDOUT[name]))
    assert len(files_in(run_dir, "heldout")) == 6


def test_external_reference_is_scored_before_step_1_and_never_again(run_dir: RunDir) -> None:
    host = FakeHost(early=[EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert host.calls == [call for call in CALLS if not call.startswith("score D_")]
    # γ = 2 · 0.5 · x: the means of D_1 and D_2
    assert trains(host) == [(EXTERNAL, 2.0), (EXTERNAL, 2.0)]
    assert [ReferenceTable.load(run_dir.reference(step)).model for step in make_plan().steps] == [EXTERNAL] * 2


def test_external_reference_evaluates_against_its_own_tables(run_dir: RunDir) -> None:
    host = FakeHost(early=[EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert [
        {name: (table.model, table.rows_digest) for name, table in tables.items()} for tables in host.eval_tables
    ] == [{name: (EXTERNAL, digest(rows)) for name, rows in HELDOUT.items()}] * 2


def test_scores_that_ordered_the_data_are_kept_and_serve_as_the_reference_of_step_1_only(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan())
    assert host.calls == [call for call in CALLS if call != "score D_1 by M_0"]
    assert trains(host) == [("M_0", -4.0), ("M_1", 4.0)]
    assert files_in(run_dir, "scores") == {"M_0-step-2.safetensors"}
    extra = ReferenceTable.load(run_dir.score("M_0", make_plan().steps[1]))
    assert (extra.model, extra.rows_digest) == ("M_0", digest(D_2))
    assert (extra.chosen - extra.rejected).tolist() == [-2, 2, -4, -12]


def test_scores_that_ordered_the_data_stand_beside_an_external_reference(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0", EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert trains(host) == [(EXTERNAL, 2.0), (EXTERNAL, 2.0)]
    assert files_in(run_dir, "scores") == {"M_0-step-1.safetensors", "M_0-step-2.safetensors"}
    assert {ReferenceTable.load(run_dir.score("M_0", step)).model for step in make_plan().steps} == {"M_0"}


def test_early_table_of_other_rows_is_refused_before_training(run_dir: RunDir) -> None:
    host, plan = FakeHost(early=["M_0"]), make_plan(reference="base")
    with pytest.raises(ReferenceTableError, match=r"the reference table of M_0 has 4 rows .* but the step has 4 rows"):
        run(host, run_dir, of_other_rows(plan, rows_digest="f" * 64))
    assert [call for call in host.calls if call.startswith("train")] == ["train M_0 on D_1"]


def test_table_of_another_model_than_the_plan_names_stops_the_run(run_dir: RunDir) -> None:
    host = FakeHost()  # scores each step by the step before
    with pytest.raises(AssertionError):
        run(host, run_dir, make_plan(reference="base"))
    assert [call for call in host.calls if call.startswith("train")] == ["train M_0 on D_1"]


@pytest.mark.parametrize("reference", ["previous", "base"])
def test_policy_goes_back_to_the_base_model_after_it_has_scored_and_before_it_trains(
    run_dir: RunDir, reference: str
) -> None:
    rows = [D_1, D_2, D_1]
    host = FakeHost(rows=rows, early=["M_0"] if reference == "base" else [])
    run(host, run_dir, make_plan(rows=rows, reference=reference, policy_init="base"))
    expected = [
        "score before step 1",
        "score D_1 by M_0",
        "score held-out by M_0, called M_0",
        "train M_0 on D_1",
        "export M_1 to step-1",
        "progress",
        "score D_2 by M_1",
        "score held-out by M_1, called M_1",
        "restart from M_1",
        "train M_0 on D_2",
        "export M_2 to step-2",
        "progress",
        "score D_3 by M_2",
        "score held-out by M_2, called M_2",
        "restart from M_2",
        "train M_0 on D_3",
        "export M_3 to step-3",
        "progress",
        "score held-out by M_3, called M_3",
        "progress",
    ]
    assert host.calls == [call for call in expected if reference == "previous" or not call.startswith("score D_")]


def test_start_from_the_base_model_leaves_the_reference_where_it_was(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir, make_plan(policy_init="base"))
    # θ = −1 for M_0, 1 for M_1: the paper's §3.5, reference M_1 and start M_0
    assert trains(host) == [("M_0", -4.0), ("M_1", 4.0)]


def test_chain_that_goes_on_from_step_to_step_never_restarts(done: Done) -> None:
    assert [call for call in done.host.calls if call.startswith("restart")] == []


# --- what goes wrong ---


def of_other_rows(plan: Plan, **changes: object) -> Plan:
    return dataclasses.replace(plan, steps=(plan.steps[0], dataclasses.replace(plan.steps[1], **changes)))


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        pytest.param({"rows_digest": "f" * 64}, "4 rows with digest ffffffffffff", id="digest"),
        pytest.param({"num_rows": 5}, "5 rows with digest ", id="number"),
    ],
)
def test_table_of_other_rows_is_refused_before_training(run_dir: RunDir, changes: dict[str, object], seen: str) -> None:
    host = FakeHost()
    with pytest.raises(ReferenceTableError, match=f"the reference table of M_1 has 4 rows .* but the step has {seen}"):
        run(host, run_dir, of_other_rows(make_plan(), **changes))
    assert [call for call in host.calls if call.startswith("train")] == ["train M_0 on D_1"]


def test_refused_table_is_not_written(run_dir: RunDir) -> None:
    plan = of_other_rows(make_plan(), rows_digest="f" * 64)
    with pytest.raises(ReferenceTableError, match="it was made for other data"):
        run(FakeHost(), run_dir, plan)
    assert not run_dir.reference(plan.steps[1]).exists()
    assert [step.state for step in Ledger.load(run_dir.ledger).steps] == ["exported", "planned"]


def test_plan_before_tokenization_has_no_digest_to_compare(run_dir: RunDir) -> None:
    assert run(FakeHost(), run_dir, of_other_rows(make_plan(), rows_digest=None)).finished


@pytest.mark.parametrize(
    ("dies_in", "states"),
    [
        ("score before step 1", ["planned", "planned"]),
        ("score D_1 by M_0", ["planned", "planned"]),
        ("train M_0 on D_1", ["training", "planned"]),
        ("export M_1 to step-1", ["trained", "planned"]),
        ("score held-out by M_1, called M_1", ["exported", "planned"]),
        ("train M_1 on D_2", ["exported", "training"]),
        ("score held-out by M_2, called M_2", ["exported", "exported"]),
    ],
)
def test_ledger_of_a_dead_run_says_how_far_it_came(run_dir: RunDir, dies_in: str, states: list[str]) -> None:
    host = FakeHost(dies_in=dies_in)
    with pytest.raises(HostDiedError, match=re.escape(dies_in)):
        run(host, run_dir)
    ledger = Ledger.load(run_dir.ledger)
    assert ([step.state for step in ledger.steps], ledger.finished) == (states, False)
    assert host.calls[-1] == dies_in


def test_run_that_dies_going_back_to_the_base_model_has_begun_the_step(run_dir: RunDir) -> None:
    host = FakeHost(dies_in="restart from M_1")
    with pytest.raises(HostDiedError):
        run(host, run_dir, make_plan(policy_init="base"))
    assert [step.state for step in Ledger.load(run_dir.ledger).steps] == ["exported", "training"]


def test_table_that_cannot_be_written_stops_the_step(run_dir: RunDir) -> None:
    in_the_way = run_dir.reference(make_plan().steps[0]).parent
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the directory should be")
    host = FakeHost()
    with pytest.raises(FileExistsError, match=re.escape(str(in_the_way))):
        run(host, run_dir)
    assert host.calls == CALLS[:3]
    assert [step.state for step in Ledger.load(run_dir.ledger).steps] == ["planned", "planned"]


def test_fake_rows_are_those_of_the_plan() -> None:
    """The fake and the plan must agree, or the tests above prove nothing."""
    assert [step.num_rows for step in make_plan().steps] == [len(D_1), len(D_2)]
