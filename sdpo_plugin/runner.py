"""Stepwise DPO (sDPO, arXiv 2403.19270, §3) on one page.

For t = 1 … T: the policy as it stands, M_{t-1}, scores D_t and so is the reference; then it is trained on D_t
from where it stands and becomes M_t. The runner knows neither models nor trainers: a ``StepHost`` does the work.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sdpo_plugin.files import write_json
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable

Tables = Mapping[str, ReferenceTable]


@dataclass(frozen=True)
class TrainOutcome:
    """What training one step gave: losses in nats, updates made."""

    first_loss: float
    final_loss: float
    num_optimizer_steps: int


class StepHost(Protocol):
    """What the runner asks of the host. Every rank calls every method, in the same order."""

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """Log-probs of D_t under the policy as it stands; the whole table on every rank."""

    def score_heldout(self, model: str) -> Tables:
        """Log-probs of each held-out set under the policy as it stands, by name of the set."""

    def train_step(self, step: StepPlan, reference: ReferenceTable, heldout: Tables) -> TrainOutcome:
        """Train the policy on D_t against this reference, with a fresh optimizer, schedule and seed."""

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """Write the policy as it stands as a loadable model with its tokenizer."""

    def on_rank_0(self, action: Callable[[], None]) -> None:
        """Run ``action`` on rank 0; an error there is raised on every rank."""


def run_steps(plan: Plan, host: StepHost, run: RunDir, on_progress: Callable[[], None]) -> Ledger:
    """Train the whole chain and leave in ``run`` what it did.

    Args:
        plan: the steps.
        host: does the work.
        run: where plan, ledger and tables go.
        on_progress: called on rank 0 after every step, when ledger and tables are on disk.

    Returns:
        The ledger of the finished chain.

    Raises:
        ReferenceTableError: a step's table is not whole or belongs to other rows; the step has not begun.
        StartGateError: a step did not begin at its reference.
    """
    ledger = Ledger.begin(plan)

    def record(step: StepPlan, **facts: Any) -> None:
        nonlocal ledger
        ledger = ledger.record(step.index, **facts)
        host.on_rank_0(lambda: ledger.save(run.ledger))

    host.on_rank_0(lambda: write_json(run.plan, plan.to_json()))
    host.on_rank_0(lambda: ledger.save(run.ledger))
    for step in plan.steps:
        clock = _Clock()
        reference = host.score_step(step)
        heldout = host.score_heldout(step.reference)
        if step.rows_digest is not None:
            reference.require_rows(step.num_rows, step.rows_digest)
        files = {run.reference(step): reference} | _heldout_files(plan, run, step.reference, heldout)
        host.on_rank_0(partial(_save_all, files))  # the data before the record that vouches for it
        record(step, state="scored", score_seconds=clock.lap())

        record(step, state="training")
        outcome = host.train_step(step, reference, heldout)
        record(step, state="trained", train_seconds=clock.lap(), **vars(outcome))

        if plan.export_steps == "all":
            host.export_step(step, run.step(step))
            record(step, state="exported", export_seconds=clock.lap())
        host.on_rank_0(on_progress)

    final = model_name(len(plan.steps))
    files = _heldout_files(plan, run, final, host.score_heldout(final))
    host.on_rank_0(partial(_save_all, files))
    ledger = replace(ledger, finished=True)
    host.on_rank_0(lambda: ledger.save(run.ledger))
    host.on_rank_0(on_progress)
    return ledger


def _heldout_files(plan: Plan, run: RunDir, model: str, tables: Tables) -> dict[Path, ReferenceTable]:
    return {run.heldout(model, column): tables[name] for column, name in enumerate(plan.heldout)}


def _save_all(files: Mapping[Path, ReferenceTable]) -> None:
    for path, table in files.items():
        table.save(path)


class _Clock:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
