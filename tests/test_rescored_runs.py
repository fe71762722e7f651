"""Runs in which M_1 picks the rows of step 2 out of what is left: ranked once, kept, and resumed wherever they die.

D_2 of the fake host is (1, −1, 2, 6), as in every other run; here these are rows 3 to 6 of the pool.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.picked_rows import read_picked
from sdpo_plugin.run_dir.resume import FRESH, find_start
from sdpo_plugin.runner import run_steps
from sdpo_plugin.step_host import PickedRows
from tests.fakes import CALLS, D_2, IDENTITY, THETA_0, FakeHost, HostDiedError, content, make_plan, run, table_of

ROWS = np.array([3, 4, 5, 6])
PICKS = "rows of D_2 picked by M_1"
# M_1 has no other reference pass over D_2 than the one that picks it.
WITH_PICKS = [PICKS if call == "table of D_2 by M_1" else call for call in CALLS]


def unranked() -> Plan:
    """The plan of two steps, of which M_1 ranks the second."""
    plan = make_plan()
    second = dataclasses.replace(plan.steps[1], rows_digest=None, is_unranked=True)
    return dataclasses.replace(plan, steps=(plan.steps[0], second))


class RankingHost(FakeHost):
    """A fake host that can pick rows, and notes what it is asked for."""

    def pick_rows(self, step: StepPlan) -> PickedRows:
        self._called(f"rows of D_{step.index} picked by {self.model}")
        tables = [table_of(D_2, self.theta, self.model), table_of(D_2, THETA_0, "M_0")]
        return PickedRows(make_plan(), ROWS, tables, 1000.0)


def live(run_dir: RunDir, host: FakeHost) -> Ledger:
    """One process: begin the run or resume it. Rows that are picked are known from the start."""
    start = find_start(run_dir) if run_dir.ledger.exists() else FRESH
    picked = read_picked(run_dir, start.ledger)
    plan = make_plan() if picked else unranked()
    journal = Journal(run_dir, host, plan, start.ledger or Ledger.begin(plan, IDENTITY))
    run_steps(plan, host, journal, start)
    return journal.ledger


def test_rows_are_picked_when_the_model_before_stands(run_dir: RunDir) -> None:
    host = RankingHost()
    ledger = live(run_dir, host)
    assert host.calls == WITH_PICKS
    assert ledger.plan == make_plan()
    assert [step["is_unranked"] for step in json.loads(run_dir.plan.read_text())["steps"]] == [False, False]


def test_run_is_that_of_a_plan_that_knew_the_rows(run_dir: RunDir, tmp_path: Path) -> None:
    """The same references for the same trainings, and the same plan in the end."""
    host, other = RankingHost(), FakeHost()
    live(run_dir, host)
    run(other, RunDir(tmp_path / "other"))
    assert [content(table) for table in host.trained_with] == [content(table) for table in other.trained_with]


def test_what_the_ranking_took_is_what_the_reference_took(run_dir: RunDir) -> None:
    """1,000 seconds, and less than one for the held-out sets."""
    seconds = live(run_dir, RankingHost()).records[1].log_probs_seconds
    assert seconds is not None
    assert 1000 < seconds < 1001


def test_pool_s_own_pass_tells_of_the_rows_under_m_0(run_dir: RunDir) -> None:
    ledger = live(run_dir, RankingHost())
    assert "sdpo/log-probs/M_0-step-2.safetensors" in ledger.tables
    assert [rows.tolist() for rows in read_picked(run_dir, ledger)] == [ROWS.tolist()]


@pytest.mark.parametrize("call", sorted(set(WITH_PICKS) - {"early tables"}))
def test_nothing_is_ranked_twice_that_is_kept(run_dir: RunDir, call: str) -> None:
    """A run that dies in the ranking ranks again, as the first time; one that dies later does not."""
    whole = RankingHost()
    live(RunDir(run_dir.root.parent / "whole"), whole)
    first, second = RankingHost(dies_in=call), RankingHost()
    with pytest.raises(HostDiedError):
        live(run_dir, first)
    ledger = live(run_dir, second)
    assert ledger.plan == make_plan()
    assert second.calls.count(PICKS) == (0 if WITH_PICKS.index(call) > WITH_PICKS.index(PICKS) else 1)
    assert second.theta == whole.theta
    if second.trained_with:
        assert content(second.trained_with[-1]) == content(whole.trained_with[-1])


def test_death_between_rows_and_ledger_ranks_again(run_dir: RunDir) -> None:
    """The file is there, and nobody vouches for it."""
    host = RankingHost()
    host.after_action = lambda: die_when(run_dir.picked.is_dir())
    with pytest.raises(HostDiedError):
        live(run_dir, host)
    assert Ledger.load(run_dir.ledger).picked == {}
    again = RankingHost()
    assert live(run_dir, again).plan == make_plan()
    assert again.calls.count(PICKS) == 1


def die_when(now: bool) -> None:
    if now:
        raise HostDiedError


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove"])
def test_rows_that_are_not_as_they_were_are_refused(run_dir: RunDir, spoil: str) -> None:
    ledger = live(run_dir, RankingHost())
    path = run_dir.picked_rows(ledger.plan.steps[1])
    whole = path.read_bytes()
    path.unlink()
    if spoil != "remove":
        path.write_bytes(whole[:-1] if spoil == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    why = "[Errno 2] No such file or directory" if spoil == "remove" else "it has been changed, its digest does not fit"
    message = f"{path} does not hold the rows that the model before this step has picked: {why}"
    with pytest.raises(OutputError, match=f"^{re.escape(message)}"):
        read_picked(run_dir, ledger)


def test_step_that_is_not_ranked_cannot_have_begun(run_dir: RunDir) -> None:
    ledger = live(run_dir, RankingHost())
    second = dataclasses.replace(ledger.plan.steps[1], is_unranked=True)
    plan = dataclasses.replace(ledger.plan, steps=(ledger.plan.steps[0], second))
    with pytest.raises(ValueError, match=r"^step step-2 is exported, and its rows are not ranked$"):
        dataclasses.replace(ledger, plan=plan)._require_files()


def test_rows_of_a_run_that_came_to_nothing_are_cleared(run_dir: RunDir) -> None:
    live(run_dir, RankingHost())
    clear(run_dir)
    assert not run_dir.picked.exists()


def test_plan_shows_sizes_before_rows() -> None:
    row = unranked().table().splitlines()[3]
    assert "  4, not ranked yet  " in row
    assert row.split()[-3:] == ["4", "M_1", "M_1"]
