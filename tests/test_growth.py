"""A run that grows: which steps may come, what its ledger then says, and what is asked of which model."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.plan import Plan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.html import html
from sdpo_plugin.report.render import markdown
from sdpo_plugin.report.view import lives
from sdpo_plugin.run_dir.drift import require_same_run, require_same_steps
from sdpo_plugin.run_dir.growth import Wanted, grown
from sdpo_plugin.run_dir.journal import Journal, close_run
from sdpo_plugin.run_dir.ledger import Ledger, Life
from sdpo_plugin.run_dir.made_rows import MadeRows
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import find_start, with_last_model
from sdpo_plugin.runner import run_steps
from tests.dead_runs import save_ledger
from tests.fakes import D_1, D_2, DIAGNOSTICS, EXTERNAL, WEIGHTS, FakeHost, HostDiedError, make_plan, table_of

D_3 = (2.0, 0.5)
ROWS = (D_1, D_2, D_3)
SETS = (["val"], ["val"], ["val", "test"])  # the held-out sets of each step


def identity(count: int, **sections: Any) -> dict[str, dict[str, Any]]:
    """The identity of a run of this many steps."""
    held = {name for names in SETS[:count] for name in names}
    facts = {
        "sdpo": {"reference": "previous"},
        "rows": {
            f"source {number}": {"rows": len(ROWS[number - 1]), "digest": str(number)} for number in range(1, count + 1)
        },
        "held-out rows": {name: {"rows": 1, "digest": name} for name in sorted(held)},
        "versions": {"trl": f"1.{count}"},
    }
    return {**facts, **sections}


def plan_of(count: int, **settings: Any) -> Plan:
    sets = {name: () for names in SETS[:count] for name in names}
    return make_plan(ROWS[:count], sets, **settings)


def wanted(count: int, plan: Plan | None = None, **sections: Any) -> Wanted:
    return Wanted(plan or plan_of(count), identity(count, **sections), SETS[:count])


def finish(run_dir: RunDir, plan: Plan, host: FakeHost | None = None) -> Ledger:
    """A run of two steps to its end, with its final model."""
    journal = Journal(run_dir, host or FakeHost(ROWS), plan, Ledger.begin(plan, identity(2)))
    run_steps(plan, host or FakeHost(ROWS), journal)
    (run_dir.root / "model.safetensors").write_bytes(b"M_2")
    (run_dir.root / "config.json").write_text('{"model": "M_2"}')
    (run_dir.root / WEIGHTS).write_text("3.0")
    close_run(run_dir, keep_last=plan.export_steps == "all")
    return Ledger.load(run_dir.ledger)


def grow(run_dir: RunDir, plan: Plan, host: FakeHost) -> Ledger:
    """One process that has the run grow to this plan, to its end."""
    start = with_last_model(run_dir, find_start(run_dir, None, wanted(len(plan.steps), plan)))
    assert start.ledger is not None
    journal = Journal(run_dir, host, plan, start.ledger)
    run_steps(plan, host, journal, start)
    return journal.ledger


# --- the ledger ---


def test_ledger_grows_by_what_the_new_step_brings_and_nothing_else() -> None:
    ledger = replace(Ledger.begin(plan_of(2), identity(2)), prepared=True, finished=True, saved=True, final="f" * 64)
    found = grown(ledger, wanted(3))
    assert [step.name for step in found.plan.steps] == ["step-1", "step-2", "step-3"]
    assert found.plan.steps[:2] == ledger.plan.steps
    assert (found.finished, found.saved, found.final, found.run_id) == (False, False, None, ledger.run_id)
    assert (found.records[:2], found.records[2].state) == (ledger.records, "planned")
    assert found.identity == {**identity(3), "versions": {"trl": "1.2"}}
    first, second = found.lives
    assert first == ledger.lives[0]
    assert (second.steps, second.versions, second.looked_back) == (("step-3",), {"trl": "1.3"}, False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", str(second.began))


def test_ledger_without_lives_has_one_that_it_does_not_know_the_beginning_of() -> None:
    """As an earlier version of this package wrote it."""
    ledger = replace(Ledger.begin(plan_of(2), identity(2)), lives=())
    assert grown(ledger, wanted(3)).lives[0] == Life(None, {"trl": "1.2"}, ("step-1", "step-2"))


def test_nothing_is_left_to_ask_where_nothing_has_begun() -> None:
    """Everything is computed for all steps then."""
    assert grown(Ledger.begin(plan_of(2), identity(2)), wanted(3)).lives[1].looked_back


def test_held_out_set_that_an_earlier_step_gets_is_no_growth() -> None:
    """It is told from one that the new step brings, and refused as in every run that is resumed."""
    asked = replace(wanted(3), heldout=(["val", "test"], ["val"], ["val"]))
    found = grown(Ledger.begin(plan_of(2), identity(2)), asked)
    with pytest.raises(ConfigError, match=r"held-out rows: test is 1 rows with digest test…, and it was not set"):
        require_same_run(found.identity, asked.identity)


@pytest.mark.parametrize("names", [["step-1"], ["step-1", "step-2"], ["step-1", "x"], ["x", "step-1", "step-2"]])
def test_steps_that_are_taken_out_or_renamed_are_no_growth(names: list[str]) -> None:
    ledger, long = Ledger.begin(plan_of(2), identity(2)), plan_of(3)
    steps = tuple(replace(step, name=name) for step, name in zip(long.steps, names, strict=False))
    found = grown(ledger, replace(wanted(3), plan=replace(long, steps=steps)))
    assert found is ledger
    if names != ["step-1", "step-2"]:
        with pytest.raises(ConfigError, match=r"name of step \d is .*, and it was "):
            require_same_steps([step.name for step in found.plan.steps], names)


def test_rows_of_a_finished_step_are_still_compared() -> None:
    """`datasets:` in another order has the same names of steps."""
    swapped = identity(3)["rows"] | {"source 1": identity(3)["rows"]["source 2"]}
    asked = wanted(3, rows=swapped)
    found = grown(Ledger.begin(plan_of(2), identity(2)), asked)
    with pytest.raises(ConfigError, match=r"rows: source 1 is 4 rows with digest 2…, and it was 3 rows with digest 1…"):
        require_same_run(found.identity, asked.identity)


@pytest.mark.parametrize("strategy", ["random", "stratified", "easy_to_hard"])
def test_pool_that_would_be_cut_anew_is_refused_by_name(strategy: str) -> None:
    block = {"partition": {"strategy": strategy}}
    ledger = Ledger.begin(plan_of(2), identity(2, sdpo=block))
    expected = (
        f"sdpo.partition: strategy: '{strategy}' cannot grow: the run in output_dir began with 2 entries of datasets:, "
        "and now there are 3, out of which every step would be cut anew"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        grown(ledger, wanted(3, sdpo=block))
    # Cut into more steps: the partition has changed, which is refused where identities are compared.
    more = {"partition": {"strategy": strategy, "num_steps": 3}}
    assert grown(ledger, wanted(3, sdpo=more, rows=identity(2)["rows"])) is ledger


def test_natural_partition_grows() -> None:
    block = {"partition": {"strategy": "natural"}}
    ledger = Ledger.begin(plan_of(2), identity(2, sdpo=block))
    assert len(grown(ledger, wanted(3, sdpo=block)).records) == 3


def test_step_whose_rows_a_hook_makes_comes_without_rows(run_dir: RunDir) -> None:
    """They get into the identity when they are made, as those of every such step."""
    finish(run_dir, plan_of(2))
    plan = plan_of(3)
    awaited = replace(plan.steps[2], is_awaited=True, num_rows=0, rows_digest=None)
    short = replace(plan, steps=(*plan.steps[:2], awaited))
    start = find_start(run_dir, None, wanted(3, short, rows=identity(2)["rows"]))
    assert start.ledger is not None
    assert start.ledger.identity["rows"] == identity(2)["rows"]
    host = FakeHost(ROWS)
    journal = Journal(run_dir, host, short, start.ledger)
    made = MadeRows(plan, "a" * 64, {"rows": 2, "digest": "3"})
    run_steps(short, host, journal, start, {"before_step": lambda step, ledger: made})
    assert journal.ledger.finished
    assert journal.ledger.identity["rows"] == identity(3)["rows"]


def test_lives_that_do_not_fit_the_plan_are_refused(run_dir: RunDir) -> None:
    ledger = Ledger.begin(plan_of(2), identity(2))
    save_ledger(run_dir, replace(ledger, lives=(replace(ledger.lives[0], steps=("step-1",)),)))
    with pytest.raises(OutputError, match=r"its lives have brought the steps \['step-1'\], and it has \['step-1', 'st"):
        Ledger.load(run_dir.ledger)


# --- the start ---


def test_run_goes_on_from_its_last_model_and_says_so(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    start = find_start(run_dir, None, wanted(3))
    assert (start.action.kind, start.action.step, start.action.model) == ("reference", 3, "M_2")
    assert (start.model_dir, start.from_final) == (run_dir.root / "step-2", False)
    assert start.passed_over == (f"the run in {run_dir.root} is finished, and grows by step-3: 3 steps",)


def test_final_model_that_has_no_double_is_given_the_place_of_its_step(run_dir: RunDir) -> None:
    """`export_steps: last`: the host will write another one where it stands."""
    finish(run_dir, plan_of(2, export_steps="last"))
    assert not (run_dir.root / "step-2").exists()
    found = find_start(run_dir, None, wanted(3))
    assert (found.from_final, found.model_dir, (run_dir.root / "step-2").exists()) == (True, None, False)
    start = with_last_model(run_dir, found)
    assert (start.from_final, start.model_dir) == (False, run_dir.root / "step-2")
    assert sorted(path.name for path in (run_dir.root / "step-2").iterdir()) == [
        "config.json",
        "model.safetensors",
        "sdpo_seal.json",
        "weights.json",
    ]
    assert with_last_model(run_dir, start) is start


def test_final_model_that_is_not_whole_and_has_no_double_is_refused(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2, export_steps="last"))
    (run_dir.root / "model.safetensors").write_bytes(b"M_3")
    expected = (
        f"the run in {run_dir.root} cannot grow: it would go on from its final model, which is not whole: "
        "model.safetensors has been changed: its digest does not fit the seal. Restore it"
    )
    with pytest.raises(OutputError, match=re.escape(expected)):
        find_start(run_dir, None, wanted(3))


def test_deleted_last_step_is_made_from_the_final_model(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    for path in (run_dir.root / "step-2").iterdir():
        path.unlink()
    assert with_last_model(run_dir, find_start(run_dir, None, wanted(3))).model_dir == run_dir.root / "step-2"


def test_model_in_the_place_of_the_new_step_is_not_overwritten(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    (run_dir.root / "step-3").mkdir()
    (run_dir.root / "step-3" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds models in step-3 that this run would overwrite"):
        find_start(run_dir, None, wanted(3))


def test_run_that_has_not_grown_is_the_same_to_the_byte(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    assert find_start(run_dir, None, wanted(2)) == find_start(run_dir)


# --- what is asked of which model ---

AFTER = [
    "table of D_3 by M_2",
    "held-out tables test by M_2, called M_2",
    "samples of D_3 by M_2, called M_2",
    "report",
    "settings of step-3",
    "train M_2 on D_3",
    "export M_3 to staging",
    "report",
    "held-out tables by M_3, called M_3",
    "samples of D_1, D_2, D_3 by M_3, called M_3",
    "report",
]


def test_earlier_models_are_asked_for_what_is_new(run_dir: RunDir) -> None:
    """By the reference M_2 D_3 has its whole table, so that it needs no sample."""
    finish(run_dir, plan_of(2, diagnostics=DIAGNOSTICS))
    host = FakeHost(ROWS)
    ledger = grow(run_dir, plan_of(3, diagnostics=DIAGNOSTICS), host)
    assert host.calls == [
        "load M_2 from step-2",
        "take M_0 from the base model",
        "held-out tables test by M_0, called M_0",
        "samples of D_3 by M_0, called M_0",
        "take M_1 from step-1",
        "held-out tables test by M_1, called M_1",
        "samples of D_3 by M_1, called M_1",
        *(call for call in AFTER if call != "samples of D_3 by M_2, called M_2"),
    ]
    assert ledger.lives[1].looked_back


def test_models_that_were_not_kept_are_not_asked(run_dir: RunDir) -> None:
    """Nor is any where nothing is to be asked: no diagnostics, no held-out set that is new."""
    finish(run_dir, plan_of(2, diagnostics=DIAGNOSTICS, export_steps="last"))
    host = FakeHost(ROWS)
    grow(run_dir, plan_of(3, diagnostics=DIAGNOSTICS, export_steps="last"), host)
    assert [call for call in host.calls if call.startswith("take ")] == ["take M_0 from the base model"]
    plain = RunDir(run_dir.root.with_name("plain"))
    finish(plain, plan_of(2))
    host = FakeHost(ROWS)
    grow(plain, replace(plan_of(3), heldout=("val",)), host)
    assert host.calls[:2] == ["load M_2 from step-2", "table of D_3 by M_2"]


@pytest.mark.parametrize(("reference", "model"), [("base", "M_0"), (EXTERNAL, EXTERNAL)])
def test_reference_that_stays_gives_the_table_of_the_new_rows(run_dir: RunDir, reference: str, model: str) -> None:
    host = FakeHost(ROWS, early=[model])
    finish(run_dir, plan_of(2, reference=reference), FakeHost(ROWS[:2], early=[model]))
    ledger = grow(run_dir, plan_of(3, reference=reference), host)
    by = "M_0" if reference == "base" else "M_2"  # in memory while the external one gives its own
    assert f"early tables of D_3 by {by}" in host.calls
    assert [call for call in host.calls if call.startswith("table of ")] == []
    theta = -1.0 if reference == "base" else 0.5
    (used,) = host.trained_with
    assert used.digest() == table_of(D_3, theta, model).digest()
    assert ledger.finished


def test_run_that_died_while_it_looked_back_asks_for_the_rest(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    dying = FakeHost(ROWS, dies_in="held-out tables test by M_1, called M_1")
    with pytest.raises(HostDiedError, match="held-out tables test by M_1"):
        grow(run_dir, plan_of(3), dying)
    host = FakeHost(ROWS)
    grow(run_dir, plan_of(3), host)
    assert host.calls[:3] == [
        "load M_2 from step-2",
        "take M_1 from step-1",
        "held-out tables test by M_1, called M_1",
    ]


def test_run_that_grew_and_lost_the_step_again_is_refused(run_dir: RunDir) -> None:
    """A record of it is there by then."""
    finish(run_dir, plan_of(2))
    dying = FakeHost(ROWS, dies_in="train M_2 on D_3")
    with pytest.raises(HostDiedError, match="train M_2 on D_3"):
        grow(run_dir, plan_of(3), dying)
    found = find_start(run_dir, None, wanted(2))
    assert found.ledger is not None
    with pytest.raises(ConfigError, match=r"name of step 3 is not set, and it was 'step-3'"):
        require_same_steps([step.name for step in found.ledger.plan.steps], ["step-1", "step-2"])


def test_step_under_way_is_trained_without_what_came_after_it(run_dir: RunDir) -> None:
    """Its held-out tables are those that it began with."""
    plan = plan_of(2)
    host = FakeHost(ROWS, dies_in="train M_1 on D_2")
    journal = Journal(run_dir, host, plan, Ledger.begin(plan, identity(2)))
    with pytest.raises(HostDiedError, match="train M_1 on D_2"):
        run_steps(plan, host, journal)
    host = FakeHost(ROWS)
    grow(run_dir, plan_of(3), host)
    assert [sorted(tables) for tables in host.eval_tables] == [["val"], ["test", "val"]]


def test_report_and_plan_tell_both_lives(run_dir: RunDir) -> None:
    finish(run_dir, plan_of(2))
    assert lives(build_report(run_dir)) == ""
    ledger = grow(run_dir, plan_of(3), FakeHost(ROWS))
    first, second = ({"began": life.began, "steps": list(life.steps)} for life in ledger.lives)
    assert json.loads(run_dir.plan.read_text())["lives"] == [first, second]
    report = build_report(run_dir)
    assert report["lives"] == [first | {"versions": {"trl": "1.2"}}, second | {"versions": {"trl": "1.3"}}]
    said = f"Begun on {first['began'][:10]} with step-1, step-2; it grew on {second['began'][:10]} by step-3."
    assert lives(report) == said
    assert said in markdown(report)
    assert said in html(report)
    report["lives"][0]["began"] = None
    assert lives(report).startswith("Begun with step-1, step-2; it grew on ")
