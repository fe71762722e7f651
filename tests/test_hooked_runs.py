"""Runs with the user's own code around their steps: when it is called, and the rows that it makes for step 2.

A hook before step 2 writes one row a line; D_2 of the fake host is (1, −1, 2, 6), as in every other run.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_plugin import digests
from sdpo_plugin.errors import HookError, OutputError
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.made_rows import MadeRows, begin_draft, draft_of, keep_draft, kept_rows
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import FRESH, find_start, steps_with_made_rows
from sdpo_plugin.runner import Hooks, run_steps
from tests.dead_runs import save_ledger
from tests.fakes import CALLS, D_2, IDENTITY, FakeHost, HostDiedError, make_plan, table_of

FACTS = {"rows": 4, "digest": "f" * 32}
ROWS = "".join(f"{json.dumps({'x': x})}\n" for x in D_2)
# A hook is called when the step before has been reported, and before the reference of its own is made.
WITH_HOOKS = [
    *CALLS[: CALLS.index("table of D_1 by M_0")],
    "before step-1 with M_0",
    *CALLS[CALLS.index("table of D_1 by M_0") : CALLS.index("table of D_2 by M_1")],
    "after step-1 with M_1",
    "before step-2 with M_1",
    *CALLS[CALLS.index("table of D_2 by M_1") : CALLS.index("held-out tables by M_2, called M_2")],
    "after step-2 with M_2",
    *CALLS[CALLS.index("held-out tables by M_2, called M_2") :],
]


def awaited(export_steps: str = "all") -> Plan:
    """The plan of two steps, of which a hook makes the second's rows."""
    plan = make_plan(export_steps=export_steps)
    second = dataclasses.replace(
        plan.steps[1], num_rows=0, num_optimizer_steps=0, rows_digest=None, sources=("before_step",), is_awaited=True
    )
    return dataclasses.replace(plan, steps=(plan.steps[0], second))


class FakeHooks:
    """Hooks that note their calls among those of their host; before a step that waits for them they make its rows.

    Args:
        run: the run directory.
        host: of the run.
        keys: the hooks that there are.
        rows: what is written before step 2.
    """

    def __init__(
        self, run: RunDir, host: FakeHost, keys: str = "before_step after_step", rows: str | None = ROWS
    ) -> None:
        self._run, self._host, self._rows = run, host, rows
        self.hooks: Hooks = {
            key: call
            for key, call in (("before_step", self._before), ("after_step", self._after))
            if key in keys.split()
        }

    def _before(self, step: StepPlan, ledger: Ledger) -> MadeRows | None:
        self._host._called(f"before {step.name} with {self._host.model}")
        if not step.is_awaited:
            return None

        def make() -> str:
            path = begin_draft(self._run, step.name)
            if self._rows is not None:
                path.write_text(self._rows)
            self._host.watch("draft written")
            return keep_draft(self._run, step.name)

        digest = self._host.on_rank_0(make)
        self._host._called("rows read")
        return MadeRows(make_plan(export_steps=ledger.plan.export_steps), digest, FACTS)

    def _after(self, step: StepPlan, ledger: Ledger) -> None:
        self._host._called(f"after {step.name} with {self._host.model}")


def live(
    run_dir: RunDir,
    host: FakeHost,
    plan: Plan | None = None,
    keys: str = "before_step after_step",
    rows: str | None = ROWS,
) -> Ledger:
    """One process: begin the run or resume it. Rows that are kept are known from the start, as the host loads them."""
    start = find_start(run_dir) if run_dir.ledger.exists() else FRESH
    made = steps_with_made_rows(run_dir)
    plan = plan or (make_plan() if made else awaited())
    journal = Journal(run_dir, host, plan, start.ledger or Ledger.begin(plan, {**IDENTITY, "rows": {"source 1": {}}}))
    run_steps(plan, host, journal, start, FakeHooks(run_dir, host, keys, rows).hooks)
    return journal.ledger


def die(run_dir: RunDir, call: str, plan: Plan | None = None) -> Ledger:
    """A process that dies in this call."""
    with pytest.raises(HostDiedError):
        live(run_dir, FakeHost(dies_in=call), plan)
    return Ledger.load(run_dir.ledger)


# --- when they are called ---


def test_order_of_calls(run_dir: RunDir) -> None:
    host = FakeHost()
    ledger = live(run_dir, host, make_plan())
    assert host.calls == WITH_HOOKS
    assert [record.called for record in ledger.records] == [("before_step", "after_step")] * 2


@pytest.mark.parametrize("key", ["before_step", "after_step", ""])
def test_hook_that_is_not_set_is_not_called_nor_recorded(run_dir: RunDir, key: str) -> None:
    host = FakeHost()
    ledger = live(run_dir, host, make_plan(), keys=key)
    assert [call for call in host.calls if call.startswith(("before", "after"))] == [
        call for call in WITH_HOOKS if key and call.startswith(key.split("_")[0])
    ]
    assert [record.called for record in ledger.records] == [(key,) if key else ()] * 2


def test_other_ranks_are_called_in_the_same_order_and_write_nothing(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo_plugin.runner.time.perf_counter", lambda: 0.0)
    first, elsewhere = FakeHost(), RunDir(run_dir.root.with_name("rank-1"))
    ledger = live(run_dir, first, awaited())
    second = FakeHost(rank=1, rank_0=first)
    assert live(elsewhere, second, awaited()) == ledger
    assert second.calls == first.calls
    assert not elsewhere.root.exists()


# died in; the first of WITH_HOOKS that the next process repeats
DEATHS = [
    ("early tables", "early tables"),
    ("before step-1 with M_0", "before step-1 with M_0"),
    ("table of D_1 by M_0", "table of D_1 by M_0"),
    ("train M_0 on D_1", "settings of step-1"),
    ("after step-1 with M_1", "after step-1 with M_1"),
    ("before step-2 with M_1", "before step-2 with M_1"),
    ("table of D_2 by M_1", "table of D_2 by M_1"),
    ("train M_1 on D_2", "settings of step-2"),
    ("after step-2 with M_2", "after step-2 with M_2"),
    ("held-out tables by M_2, called M_2", "held-out tables by M_2, called M_2"),
]


@pytest.mark.parametrize("export_steps", ["all", "last"])
@pytest.mark.parametrize(("died_in", "first"), DEATHS, ids=[died_in for died_in, _ in DEATHS])
def test_resumed_run_calls_what_had_not_come_back(run_dir: RunDir, died_in: str, first: str, export_steps: str) -> None:
    plan, host = make_plan(export_steps=export_steps), FakeHost()
    die(run_dir, died_in, plan)
    ledger = live(run_dir, host, plan)
    assert [call for call in host.calls if not call.startswith("load ")] == WITH_HOOKS[WITH_HOOKS.index(first) :]
    assert [record.called for record in ledger.records] == [("before_step", "after_step")] * 2
    assert ledger.finished


def test_model_stands_when_its_hook_is_called_where_only_the_last_is_kept(run_dir: RunDir) -> None:
    host, seen = FakeHost(), {}

    def look(call: str) -> None:
        if call.startswith("after"):
            seen[call] = [(run_dir.root / name / "config.json").exists() for name in ("step-1", "step-2")]

    host.watch = look
    live(run_dir, host, make_plan(export_steps="last"))
    assert seen == {"after step-1 with M_1": [True, False], "after step-2 with M_2": [False, True]}


@pytest.mark.parametrize("export_steps", ["all", "last"])
def test_hook_that_is_set_when_a_run_is_resumed_sees_the_models_that_stand(run_dir: RunDir, export_steps: str) -> None:
    """The step that trains has begun without it, and M_1 is gone where only the last model is kept."""
    plan = make_plan(export_steps=export_steps)
    with pytest.raises(HostDiedError):
        live(run_dir, FakeHost(dies_in="held-out tables by M_2, called M_2"), plan, keys="")
    host = FakeHost()
    live(run_dir, host, plan)
    called = ["after step-1 with M_2", "after step-2 with M_2"][0 if export_steps == "all" else 1 :]
    assert [call for call in host.calls if call.startswith(("before", "after"))] == called


def test_hook_comes_too_late_for_a_step_that_has_its_reference(run_dir: RunDir) -> None:
    with pytest.raises(HostDiedError):
        live(run_dir, FakeHost(dies_in="train M_1 on D_2"), make_plan(), keys="after_step")
    host = FakeHost()
    live(run_dir, host, make_plan())
    assert [call for call in host.calls if call.startswith("before")] == []


# --- rows ---


def test_rows_that_a_hook_makes_are_trained_on_and_kept(run_dir: RunDir) -> None:
    host = FakeHost()
    ledger = live(run_dir, host)
    assert host.calls == [
        call for one in WITH_HOOKS for call in ([one, "rows read"] if "before step-2" in one else [one])
    ]
    kept = run_dir.root / "sdpo" / "data" / "step-2.jsonl"
    assert kept.read_text() == ROWS
    assert list(kept.parent.iterdir()) == [kept]
    assert ledger.made_rows == {"sdpo/data/step-2.jsonl": digests.of_file(kept)}
    assert ledger.plan == make_plan()
    assert ledger.identity["rows"] == {"source 1": {}, "source 2": FACTS}
    assert Ledger.load(run_dir.ledger) == ledger
    assert json.loads(run_dir.plan.read_text())["steps"][1]["num_rows"] == 4
    assert host.trained_with[1].rows_digest == table_of(D_2, 0, "").rows_digest


def test_plan_says_that_rows_are_not_made_yet(run_dir: RunDir) -> None:
    seen: list[str] = []
    host = FakeHost()
    host.watch = lambda call: seen.append(Ledger.load(run_dir.ledger).plan.table().splitlines()[3])
    live(run_dir, host)
    assert re.split(" {2,}", seen[0].strip())[:4] == ["2 step-2", "before_step", "not made yet", "0"]
    assert re.split(" {2,}", seen[0].strip())[5] == "–"
    assert re.split(" {2,}", seen[-1].strip())[2] == "4"


@pytest.mark.parametrize("died_in", ["table of D_2 by M_1", "train M_1 on D_2", "after step-2 with M_2"])
def test_kept_rows_are_read_and_the_hook_is_not_called_again(run_dir: RunDir, died_in: str) -> None:
    die(run_dir, died_in)
    assert steps_with_made_rows(run_dir) == ("step-2",)
    host = FakeHost()
    ledger = live(run_dir, host, rows="something else\n")
    assert "before step-2 with M_1" not in host.calls
    assert run_dir.made_rows_of("step-2").read_text() == ROWS
    assert (ledger.plan, ledger.finished) == (make_plan(), True)


@pytest.mark.parametrize("died_in", ["before step-2 with M_1", "rows read"])
def test_hook_that_died_is_called_again_and_nothing_of_its_rows_is_used(run_dir: RunDir, died_in: str) -> None:
    """Also where its rows have their place already, but no ledger vouches for them."""
    ledger = die(run_dir, died_in)
    assert (ledger.made_rows, steps_with_made_rows(run_dir)) == ({}, ())
    other = ROWS + '{"x": 0}\n'
    host = FakeHost()
    live(run_dir, host, rows=other)
    assert "before step-2 with M_1" in host.calls
    assert run_dir.made_rows_of("step-2").read_text() == other


def test_half_written_rows_are_swept_and_not_read_again(run_dir: RunDir) -> None:
    def die_in_hook(call: str) -> None:
        if call == "draft written":
            raise HostDiedError

    host = FakeHost()
    host.watch = die_in_hook
    with pytest.raises(HostDiedError):
        live(run_dir, host)
    assert draft_of(run_dir, "step-2").exists()
    live(run_dir, FakeHost())
    assert [path.name for path in run_dir.made_rows.iterdir()] == ["step-2.jsonl"]


@pytest.mark.parametrize(("rows", "what"), [(None, "is not there"), ("", "is empty")], ids=["nothing", "empty"])
def test_hook_that_makes_no_rows_ends_the_run(run_dir: RunDir, rows: str | None, what: str) -> None:
    expected = (
        f"step step-2: sdpo.before_step came back without rows: {run_dir.made_rows}/.step-2.jsonl.tmp {what}. Let it "
        "write one JSON object a line to the data_path that it is given, and run the same command with "
        "auto_resume_from_checkpoints: true, which calls it again."
    )
    with pytest.raises(HookError, match=f"^{re.escape(expected)}$"):
        live(run_dir, FakeHost(), rows=rows)
    assert Ledger.load(run_dir.ledger).records[1].called == ()
    assert live(run_dir, FakeHost()).finished  # the remedy helps


def change(path: Path) -> None:
    path.write_text(path.read_text().replace("6", "7"))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (change, "it has been changed, its digest does not fit the ledger"),
        (Path.unlink, "it cannot be read ([Errno 2]"),
    ],
    ids=["changed", "missing"],
)
def test_kept_rows_that_are_damaged_are_refused_by_name(
    run_dir: RunDir, damage: Callable[[Path], None], what: str
) -> None:
    die(run_dir, "train M_1 on D_2")
    path = run_dir.made_rows_of("step-2")
    damage(path)
    with pytest.raises(OutputError) as caught:
        steps_with_made_rows(run_dir)
    said = str(caught.value)
    assert said.startswith(f"{path} does not hold the rows that sdpo.before_step has made for step step-2: {what}")
    assert said.endswith("Restore it, or train into another output_dir.")
    path.write_text(ROWS)
    assert live(run_dir, FakeHost()).finished


def test_rows_of_a_run_that_came_to_nothing_go_with_it(run_dir: RunDir) -> None:
    die(run_dir, "table of D_2 by M_1")
    clear(run_dir)
    assert not run_dir.made_rows.exists()
    assert kept_rows(run_dir, Ledger.begin(make_plan(), IDENTITY)) == ()


def test_rows_do_not_go_where_a_link_leads(run_dir: RunDir, tmp_path: Path) -> None:
    run_dir.folder.mkdir(parents=True)
    run_dir.made_rows.symlink_to(tmp_path)
    with pytest.raises(OutputError, match=rf"{re.escape(str(run_dir.made_rows))} is a symbolic link to"):
        live(run_dir, FakeHost())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(
            lambda ledger: dataclasses.replace(ledger, plan=awaited()),
            "step step-2 is training, and its rows are not made",
            id="awaited",
        ),
        pytest.param(
            lambda ledger: dataclasses.replace(ledger, made_rows={"sdpo/data/step-3.jsonl": "a"}),
            "it vouches for rows of no step: ['sdpo/data/step-3.jsonl']",
            id="no-step",
        ),
        pytest.param(
            lambda ledger: dataclasses.replace(ledger, made_rows={"../step-2.jsonl": "a"}),
            "'../step-2.jsonl' is no path below its directory",
            id="elsewhere",
        ),
    ],
)
def test_ledger_that_cannot_be_is_refused(run_dir: RunDir, spoil: Callable[[Ledger], Ledger], why: str) -> None:
    save_ledger(run_dir, spoil(die(run_dir, "train M_1 on D_2")))
    with pytest.raises(OutputError, match=re.escape(why)):
        Ledger.load(run_dir.ledger)
