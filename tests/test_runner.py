"""The algorithm, driven by a fake host: the order of calls, their arguments, and the files on disk at each call."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from sdpo_plugin.errors import OutputError, ReferenceTableError
from sdpo_plugin.plan import model_name
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import SEAL, flaw
from sdpo_plugin.run_dir.table_files import load_table
from tests.fakes import (
    CALLS,
    D_1,
    D_2,
    HELDOUT,
    IDENTITY,
    WEIGHTS,
    FakeHost,
    HostDiedError,
    content,
    digest,
    make_plan,
    of_other_rows,
    run,
)


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
    """Every model is exported all the same: a run that dies in the next step is resumed from it."""
    host = FakeHost()
    run(host, run_dir, make_plan(export_steps="last"))
    assert host.calls == CALLS


@pytest.mark.parametrize("num_steps", [1, 3], ids=lambda number: f"{number}-steps")
def test_any_number_of_steps(run_dir: RunDir, num_steps: int) -> None:
    host = FakeHost(rows=[D_1] * num_steps)
    run(host, run_dir, make_plan(rows=[D_1] * num_steps))
    assert [call for call in host.calls if call.startswith("train")] == [
        f"train M_{index - 1} on D_{index}" for index in range(1, num_steps + 1)
    ]
    assert host.calls.count("report") == 2 * num_steps + 1


def test_other_ranks_are_called_in_the_same_order_and_write_nothing(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo_plugin.runner.time.perf_counter", lambda: 0.0)  # each rank has a clock of its own
    first = FakeHost(adapter=True)
    ledger = run(first, run_dir)
    second = FakeHost(rank=1, rank_0=first, adapter=True)
    elsewhere = RunDir(run_dir.root.with_name("rank-1"))
    # Its own new ledger has another run id: rank 0's counts.
    assert run(second, elsewhere) == ledger
    assert second.calls == CALLS
    assert second.rank_0_actions == first.rank_0_actions == len(first.answers)
    assert [content(table) for table in second.trained_with] == [content(table) for table in first.trained_with]
    assert not elsewhere.root.exists()


# --- what is handed over ---


def test_reference_of_a_step_is_the_table_computed_before_it(done: Done) -> None:
    """Bit for bit, read back from disk: what a step trains with is what a resumed run would train with."""
    assert len(done.host.trained_with) == 2
    assert [content(table) for table in done.host.trained_with] == [content(table) for table in done.host.tables]


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


def test_export_comes_to_stand_in_the_directory_of_the_step(done: Done) -> None:
    for step, model, theta in (("step-1", "M_1", 1.0), ("step-2", "M_2", 3.0)):
        assert json.loads((done.dir.root / step / "config.json").read_text()) == {"model": model}
        assert json.loads((done.dir.root / step / WEIGHTS).read_text()) == theta
        about = {"run": done.ledger.run_id, "model": model}
        assert flaw(done.dir.root / step, about, done.ledger.exports[model]) is None


def test_step_is_told_what_its_checkpoints_have_to_say(done: Done) -> None:
    assert [training.about for training in done.host.trainings] == [
        {"run": done.ledger.run_id, "step": "step-1", "reference": done.host.tables[0].digest()},
        {"run": done.ledger.run_id, "step": "step-2", "reference": done.host.tables[1].digest()},
    ]
    assert [training.checkpoint for training in done.host.trainings] == [None, None]


def test_adapter_as_it_was_initialised_is_kept(run_dir: RunDir) -> None:
    ledger = run(FakeHost(adapter=True), run_dir)
    assert list(ledger.exports) == ["M_0", "M_1", "M_2"]
    assert json.loads((run_dir.base_adapter / WEIGHTS).read_text()) == -1.0
    assert flaw(run_dir.base_adapter, {"run": ledger.run_id, "model": "M_0"}, ledger.exports["M_0"]) is None


def test_base_model_is_not_kept_again(done: Done) -> None:
    assert list(done.ledger.exports) == ["M_1", "M_2"]
    assert not done.dir.base_adapter.exists()


# --- what is on disk ---


def test_ledger_on_disk_at_each_call(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []

    def look(call: str) -> None:
        ledger = Ledger.load(run_dir.ledger)
        seen.append((call, *(record.state for record in ledger.records), ledger.prepared, ledger.finished))

    host.watch = look
    run(host, run_dir)
    states = [
        ("planned", "planned", False, False),
        ("planned", "planned", False, False),
        ("planned", "planned", True, False),
        ("planned", "planned", True, False),
        ("referenced", "planned", True, False),
        ("referenced", "planned", True, False),
        ("training", "planned", True, False),
        ("trained", "planned", True, False),
        ("exported", "planned", True, False),
        ("exported", "planned", True, False),
        ("exported", "planned", True, False),
        ("exported", "referenced", True, False),
        ("exported", "referenced", True, False),
        ("exported", "training", True, False),
        ("exported", "trained", True, False),
        ("exported", "exported", True, False),
        ("exported", "exported", True, False),
        ("exported", "exported", True, True),
    ]
    assert seen == [(call, *state) for call, state in zip(CALLS, states, strict=True)]


def test_states_are_written_in_this_order(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []
    host.after_action = lambda: seen.append(
        Ledger.load(run_dir.ledger).records[0].state if run_dir.ledger.exists() else "no ledger"
    )
    run(host, run_dir)
    assert list(dict.fromkeys(seen)) == ["no ledger", "planned", "referenced", "training", "trained", "exported"]


def test_plan_is_on_disk_before_its_ledger(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []
    host.after_action = lambda: seen.append((run_dir.plan.exists(), run_dir.ledger.exists()))
    run(host, run_dir)
    assert list(dict.fromkeys(seen)) == [(False, False), (True, False), (True, True)]


def test_half_a_model_of_a_dead_run_does_not_get_into_the_next(run_dir: RunDir) -> None:
    run_dir.staging.mkdir(parents=True)
    (run_dir.staging / "half.bin").write_bytes(b"of an earlier run")
    run(FakeHost(), run_dir)
    assert {path.name for path in (run_dir.root / "step-1").iterdir()} == {WEIGHTS, "config.json", SEAL}


@pytest.mark.parametrize("export_steps", ["all", "last"])
def test_record_never_stands_without_the_data_it_vouches_for(run_dir: RunDir, export_steps: str) -> None:
    host, plan, checked = FakeHost(adapter=True), make_plan(export_steps=export_steps), []

    def look() -> None:
        if not run_dir.ledger.exists():
            return
        ledger = Ledger.load(run_dir.ledger)
        begun = [step for step, record in ledger.steps if record.state != "planned"]
        models = [step.reference for step in begun] + ["M_2"] * ledger.finished
        for step in begun:
            load_table(run_dir.reference(step)).require_rows(step.num_rows, str(step.rows_digest))
        for model in models:
            assert {load_table(run_dir.heldout(model, column)).model for column in (0, 1)} == {model}
        for key, digest_of_table in ledger.tables.items():
            assert load_table(run_dir.root / key).digest() == digest_of_table
        places = {"M_0": run_dir.base_adapter} | {
            f"M_{s.index}": run_dir.step(s) for s, record in ledger.steps if record.kept
        }
        for model in set(ledger.exports) & set(places):
            assert flaw(places[model], {"run": ledger.run_id, "model": model}, ledger.exports[model]) is None
        checked.append((len(models), len(ledger.tables), len(ledger.exports)))

    host.after_action = look
    run(host, run_dir, plan)
    # a reference and two held-out tables a step, and at the end two more
    assert list(dict.fromkeys(checked)) == [(0, 0, 0), (0, 0, 1), (1, 3, 1), (1, 3, 2), (2, 6, 2), (2, 6, 3), (3, 8, 3)]


def test_table_on_disk_is_the_table_that_trains(done: Done) -> None:
    plan = make_plan()
    for step, trained in zip(plan.steps, done.host.trained_with, strict=True):
        loaded = load_table(done.dir.reference(step))
        assert np.array_equal([loaded.chosen, loaded.rejected], [trained.chosen, trained.rejected])
        assert (loaded.model, loaded.rows_digest) == (trained.model, trained.rows_digest)


@pytest.mark.parametrize("model", ["M_0", "M_1", "M_2"])
def test_held_out_tables_on_disk_are_each_of_their_own_set(done: Done, model: str) -> None:
    tables = [load_table(done.dir.heldout(model, column)) for column in (0, 1)]
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
        "sdpo/history/step-1.json",
        "sdpo/history/step-2.json",
        *(f"sdpo/heldout/{model_name(model)}-{column}.safetensors" for model in (0, 1, 2) for column in (1, 2)),
        *(f"step-{step}/{name}" for step in (1, 2) for name in (WEIGHTS, "config.json", SEAL)),
    }


def test_ledger_vouches_for_every_table(done: Done) -> None:
    tables = {path.relative_to(done.dir.root).as_posix() for path in done.dir.root.rglob("*.safetensors")}
    assert set(done.ledger.tables) == tables


def test_run_without_held_out_sets_writes_none(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir, make_plan(heldout={}))
    assert not (run_dir.root / "sdpo" / "heldout").exists()


def test_plan_on_disk_is_the_plan(done: Done) -> None:
    written = json.loads(done.dir.plan.read_text())
    (life,) = written.pop("lives")
    assert written == {"schema_version": 1, **json.loads(json.dumps(dataclasses.asdict(make_plan())))}
    assert life["steps"] == ["step-1", "step-2"]


def test_ledger_of_the_journal_is_the_one_on_disk(done: Done) -> None:
    assert done.ledger == Ledger.load(done.dir.ledger)


def test_ledger_holds_plan_and_identity(done: Done) -> None:
    assert done.ledger.plan == make_plan()
    assert done.ledger.identity == IDENTITY


def test_ledger_keeps_what_each_step_trains_with(done: Done) -> None:
    assert [record.settings for record in done.ledger.records] == [{"num_epochs": 1}, {"num_epochs": 2}]


def test_host_still_has_to_save_the_final_model(done: Done) -> None:
    assert (done.ledger.finished, done.ledger.saved) == (True, False)


def test_ledger_keeps_what_training_gave(done: Done) -> None:
    assert [(record.first_loss, record.final_loss, record.num_optimizer_steps) for record in done.ledger.records] == [
        (math.log(2), 0.7 - 0.1 * 1, 2),  # 3 rows planned 3 updates, the fake makes one fewer
        (math.log(2), 0.7 - 0.1 * 2, 3),
    ]


def test_ledger_keeps_the_time_of_each_part(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    host, now = FakeHost(), 100.0
    seconds = {
        "early tables": 100.0,
        "table of D": 1.0,
        "held-out tables": 2.0,
        "settings": 20.0,
        "train": 10.0,
        "export the start": 1000.0,
        "export M": 5.0,
        "report": 50.0,
    }

    def spend(call: str) -> None:
        nonlocal now
        now += next(cost for start, cost in seconds.items() if call.startswith(start))

    host.watch = spend
    monkeypatch.setattr("sdpo_plugin.runner.time.perf_counter", lambda: now)
    ledger = run(host, run_dir)
    # log-probs: D_t 1 s and held-out sets 2 s; what is done before step 1 and what a report takes belong to no step
    seconds_of = [(found.log_probs_seconds, found.train_seconds, found.export_seconds) for found in ledger.records]
    assert seconds_of == [(3, 30, 5)] * 2


def test_models_that_are_superseded_go_where_only_the_last_is_kept(run_dir: RunDir) -> None:
    ledger = run(FakeHost(), run_dir, make_plan(export_steps="last"))
    assert [(record.state, record.kept) for record in ledger.records] == [("exported", False), ("exported", True)]
    assert not (run_dir.root / "step-1").exists()
    assert (run_dir.root / "step-2" / "config.json").exists()


def test_model_is_there_until_the_next_one_stands(run_dir: RunDir) -> None:
    """M_1 is what step 2 is resumed from, as long as M_2 is not on disk."""
    host, seen = FakeHost(), []
    host.watch = lambda call: seen.append(
        (call, *((run_dir.root / step / "config.json").exists() for step in ("step-1", "step-2")))
    )
    run(host, run_dir, make_plan(export_steps="last"))
    at = CALLS.index("export M_2 to staging")
    assert seen[at] == ("export M_2 to staging", True, False)
    assert seen[at + 1] == ("report", False, True)


def test_all_models_stay_where_all_are_kept(done: Done) -> None:
    assert [record.kept for record in done.ledger.records] == [True, True]


# --- what goes wrong ---


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
    assert [record.state for record in Ledger.load(run_dir.ledger).records] == ["exported", "planned"]


def test_plan_before_tokenization_has_no_digest_to_compare(run_dir: RunDir) -> None:
    assert run(FakeHost(), run_dir, of_other_rows(make_plan(), rows_digest=None)).finished


@pytest.mark.parametrize(
    ("dies_in", "states"),
    [
        ("early tables", ["planned", "planned"]),
        ("table of D_1 by M_0", ["planned", "planned"]),
        ("export the start", ["planned", "planned"]),
        ("settings of step-1", ["referenced", "planned"]),
        ("train M_0 on D_1", ["training", "planned"]),
        ("export M_1 to staging", ["trained", "planned"]),
        ("held-out tables by M_1, called M_1", ["exported", "planned"]),
        ("settings of step-2", ["exported", "referenced"]),
        ("train M_1 on D_2", ["exported", "training"]),
        ("export M_2 to staging", ["exported", "trained"]),
        ("held-out tables by M_2, called M_2", ["exported", "exported"]),
    ],
)
def test_ledger_of_a_dead_run_says_how_far_it_came(run_dir: RunDir, dies_in: str, states: list[str]) -> None:
    host = FakeHost(dies_in=dies_in)
    with pytest.raises(HostDiedError, match=re.escape(dies_in)):
        run(host, run_dir)
    ledger = Ledger.load(run_dir.ledger)
    assert ([record.state for record in ledger.records], ledger.finished) == (states, False)
    assert host.calls[-1] == dies_in


def test_run_that_dies_going_back_to_the_base_model_has_begun_the_step(run_dir: RunDir) -> None:
    host = FakeHost(dies_in="restart from M_1")
    with pytest.raises(HostDiedError):
        run(host, run_dir, make_plan(policy_init="base"))
    assert [record.state for record in Ledger.load(run_dir.ledger).records] == ["exported", "training"]


def test_table_that_cannot_be_written_stops_the_step(run_dir: RunDir) -> None:
    in_the_way = run_dir.reference(make_plan().steps[0]).parent
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the directory should be")
    host = FakeHost()
    with pytest.raises(OutputError, match=re.escape(str(in_the_way))):
        run(host, run_dir)
    assert host.calls == CALLS[:4]
    assert [record.state for record in Ledger.load(run_dir.ledger).records] == ["planned", "planned"]


def test_fake_rows_are_those_of_the_plan() -> None:
    """The fake and the plan must agree, or the tests above prove nothing."""
    assert [step.num_rows for step in make_plan().steps] == [len(D_1), len(D_2)]
