"""The next action of every possible ledger, and the first action that the loop over the steps really takes."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.journal import Journal, close_run
from sdpo_plugin.run_dir.ledger import Ledger, State
from sdpo_plugin.run_dir.next_action import Action, next_action
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import FRESH, Start, find_start
from sdpo_plugin.runner import run_steps
from tests.dead_runs import Life, ledger_of, save_ledger
from tests.fakes import EXTERNAL, IDENTITY, FakeHost, HostDiedError, make_plan

# --- over every state of a ledger ---


def life(num_steps: int, init: str) -> Iterator[tuple[Life, Action]]:
    """Every state of the ledger in the order of a run: prepared, states, finished, saved; and what comes next."""
    todo, last = ("planned",) * num_steps, f"M_{num_steps}"
    yield (False, todo, False, False), Action("prepare", 0, "M_0")
    for done in range(num_steps):
        before, after = ("exported",) * done, ("planned",) * (num_steps - done - 1)
        start = f"M_{done}" if init == "previous" else "M_0"
        yield (True, (*before, "planned", *after), False, False), Action("reference", done + 1, f"M_{done}")
        for state in ("referenced", "training", "trained"):
            yield (True, (*before, state, *after), False, False), Action("train", done + 1, start)
    done_all = ("exported",) * num_steps
    yield (True, done_all, False, False), Action("finish", 0, last)
    yield (True, done_all, True, False), Action("save", 0, last)
    yield (True, done_all, True, True), Action("nothing", 0, last)


@pytest.mark.parametrize("init", ["previous", "base"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_next_action_of_every_ledger_that_a_run_can_leave(run_dir: RunDir, num_steps: int, init: str) -> None:
    states = list(life(num_steps, init))
    assert len(states) == 4 * num_steps + 4
    for state, action in states:
        ledger = ledger_of(state, init)
        save_ledger(run_dir, ledger)
        assert next_action(Ledger.load(run_dir.ledger)) == action


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_every_other_ledger_is_refused(run_dir: RunDir, num_steps: int) -> None:
    allowed, refused = {state for state, _ in life(num_steps, "previous")}, 0
    flags = (False, True)
    for state in product(flags, product(get_args(State), repeat=num_steps), flags, flags):
        if state in allowed:
            continue
        save_ledger(run_dir, ledger_of(state))
        with pytest.raises(OutputError, match=r"in an order that no run takes|finished: .*, saved: .* with states"):
            Ledger.load(run_dir.ledger)
        refused += 1
    assert refused == 8 * 5**num_steps - (4 * num_steps + 4)


def test_fresh_run_begins_where_an_empty_ledger_does() -> None:
    assert Start(None, next_action(Ledger.begin(make_plan(), IDENTITY))) == FRESH


# --- the loop does it ---


@dataclass(frozen=True)
class Kind:
    """The kind of run; ``ordered``: every D_t has a table of M_0 before step 1, which ordered the data."""

    num_steps: int = 3
    reference: str = "previous"
    policy_init: str = "previous"
    export_steps: str = "all"
    adapter: bool = False
    ordered: bool = False

    @property
    def rows(self) -> list[list[float]]:
        return [[1.0]] * self.num_steps

    def plan(self) -> Plan:
        return make_plan(self.rows, None, self.export_steps, self.reference, self.policy_init)

    def host(self) -> FakeHost:
        by_base = ["M_0"] if self.ordered or self.reference == "base" else []
        return FakeHost(self.rows, adapter=self.adapter, early=[*by_base, *[EXTERNAL] * (self.reference == EXTERNAL)])


def live(run: RunDir, kind: Kind, host: FakeHost) -> Journal:
    """Run one process: begin the run, or resume it."""
    start, plan = find_start(run) if run.ledger.exists() else FRESH, kind.plan()
    journal = Journal(run, host, plan, start.ledger or Ledger.begin(plan, IDENTITY))
    run_steps(plan, host, journal, start)
    return journal


def named(call: str, num_steps: int) -> Action | None:
    """The action that begins with this call, by the model that the host really had; None for what is no work."""
    words = call.replace(",", "").split()
    if call == "early tables":
        return Action("prepare", 0, "M_0")
    if call.startswith("table of "):
        return Action("reference", int(words[2].removeprefix("D_")), words[4])
    if call.startswith("train "):
        return Action("train", int(words[3].removeprefix("D_")), words[1])
    if call.startswith("held-out tables "):
        assert words[3] == words[5]
        index = int(words[3].removeprefix("M_"))
        return Action("finish", 0, words[3]) if index == num_steps else Action("reference", index + 1, words[3])
    assert call.startswith(("load ", "settings ", "restart ")), f"no action begins with {call!r}"
    return None


def require_next_action_first(run: RunDir, kind: Kind) -> Action:
    """Assert that a new process first asks its host for the next action of the ledger on disk; return it."""
    action, host, done = next_action(Ledger.load(run.ledger)), kind.host(), []

    def stop_at_work(call: str) -> None:
        found = named(call, kind.num_steps)
        if found is not None:
            done.append((found, host.model))
            raise HostDiedError

    host.watch = stop_at_work
    if action.kind in ("save", "nothing"):
        live(run, kind, host)
        # M_T is in memory for the host to save; a run that is saved needs no model, which may be gone.
        assert (done, host.model) == ([], action.model if action.kind == "save" else "M_0")
        return action
    with pytest.raises(HostDiedError):
        live(run, kind, host)
    assert done == [(action, action.model)]
    restarts = [call for call in host.calls if call.startswith("restart ")]
    goes_back = action.kind == "train" and kind.policy_init == "base" and action.step > 1
    assert restarts == (["restart from M_0"] if goes_back else [])
    return action


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("policy_init", ["previous", "base"])
@pytest.mark.parametrize("reference", ["previous", "base", EXTERNAL])
def test_run_that_died_before_any_call_begins_with_its_next_action(
    run_dir: RunDir, tmp_path: Path, reference: str, policy_init: str, adapter: bool
) -> None:
    kind = Kind(reference=reference, policy_init=policy_init, export_steps="last", adapter=adapter)
    host, copies = kind.host(), []

    def copy(call: str = "") -> None:
        copies.append(RunDir(Path(shutil.copytree(run_dir.root, tmp_path / str(len(copies))))))

    host.watch = copy
    live(run_dir, kind, host)
    copy()
    close_run(run_dir, keep_last=False)
    copy()
    assert len(copies) == len(host.calls) + 2
    seen = [require_next_action_first(run, kind) for run in copies]
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(action for _, action in life(3, policy_init)))


KINDS = st.builds(
    Kind,
    num_steps=st.integers(1, 4),
    reference=st.sampled_from(["previous", "base", EXTERNAL]),
    policy_init=st.sampled_from(["previous", "base"]),
    export_steps=st.sampled_from(["all", "last"]),
    adapter=st.booleans(),
    ordered=st.booleans(),
)


def live_until(run: RunDir, kind: Kind, before_call: int, after_action: int) -> None:
    """A process that dies before this call of its host, or after this action of rank 0, whatever comes first."""
    host, actions = kind.host(), 0

    def die_before_call(call: str) -> None:
        if len(host.calls) == before_call:
            raise HostDiedError

    def die_after_action() -> None:
        nonlocal actions
        actions += 1
        if actions == after_action:
            raise HostDiedError

    host.watch, host.after_action = die_before_call, die_after_action
    try:
        live(run, kind, host)
    except HostDiedError:
        return
    close_run(run, keep_last=kind.export_steps == "all")


@given(kind=KINDS, deaths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 100)), min_size=1, max_size=4))
def test_run_that_died_anywhere_and_again_begins_with_its_next_action(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, deaths: list[tuple[int, int]]
) -> None:
    run = RunDir(tmp_path_factory.mktemp("run") / "out")
    for before_call, after_action in deaths:
        live_until(run, kind, before_call, after_action)
        if run.ledger.exists():
            copy = RunDir(Path(shutil.copytree(run.root, tmp_path_factory.mktemp("copy") / "out")))
            require_next_action_first(copy, kind)
