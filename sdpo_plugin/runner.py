"""Stepwise DPO (sDPO, arXiv 2403.19270, §3) on one page.

For t = 1 … T: the policy as it stands, M_{t-1}, scores D_t and so is the reference; then it is trained on D_t
from where it stands and becomes M_t. With another `reference:` the same table is filled before step 1; with
`policy_init: base` the policy goes back to M_0 first. The runner knows neither models nor trainers: a ``StepHost``
does the work.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sdpo_plugin.files import write_json
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable

Tables = Mapping[str, ReferenceTable]
M_0 = model_name(0)


@dataclass(frozen=True)
class TrainOutcome:
    """What training one step gave: losses in nats, updates made."""

    first_loss: float
    final_loss: float
    num_optimizer_steps: int


@dataclass(frozen=True)
class EarlyTables:
    """What is scored before step 1.

    Attributes:
        steps: log-probs of D_t: by M_0 where they order the data, by the reference where it never changes.
        heldout: log-probs of the held-out sets by an external reference, under its name.
    """

    steps: Sequence[tuple[StepPlan, ReferenceTable]] = ()
    heldout: Mapping[str, Tables] = field(default_factory=dict)


class StepHost(Protocol):
    """What the runner asks of the host. Every rank calls every method, in the same order."""

    def score_before(self, plan: Plan) -> EarlyTables:
        """Tables that are made before step 1; empty where every reference is the step before."""

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """Log-probs of D_t under the policy as it stands; the whole table on every rank."""

    def score_heldout(self, model: str) -> Tables:
        """Log-probs of each held-out set under the policy as it stands, by name of the set."""

    def restart_policy(self) -> None:
        """Make the policy M_0 again: the base weights, or the adapter as it was initialised."""

    def train_step(self, step: StepPlan, reference: ReferenceTable, heldout: Tables) -> TrainOutcome:
        """Train the policy on D_t against this reference, with a fresh optimizer, schedule and seed.

        ``heldout`` are the held-out sets under the same reference, for the host's evaluations within the step.
        """

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
    log = _Log(plan, host, run)
    early = host.score_before(plan)
    log.save({run.score(t.model, step): t for step, t in early.steps if t.model != step.reference})
    references = {step.index: t for step, t in early.steps if t.model == step.reference}
    heldout: dict[str, Tables] = dict(early.heldout)

    for step in plan.steps:
        policy, clock = model_name(step.index - 1), _Clock()
        reference = references.pop(step.index, None) or host.score_step(step)
        assert reference.model == step.reference
        heldout[policy] = host.score_heldout(policy)
        if step.rows_digest is not None:
            reference.require_rows(step.num_rows, step.rows_digest)
        log.save({run.reference(step): reference} | _heldout_files(plan, run, policy, heldout[policy]))
        log.record(step, state="scored", score_seconds=clock.lap())

        log.record(step, state="training")
        if step.policy_init == M_0 and step.index > 1:
            host.restart_policy()
        outcome = host.train_step(step, reference, heldout[step.reference])
        log.record(step, state="trained", train_seconds=clock.lap(), **vars(outcome))

        if plan.export_steps == "all":
            host.export_step(step, run.step(step))
            log.record(step, state="exported", export_seconds=clock.lap())
        host.on_rank_0(on_progress)

    last = model_name(len(plan.steps))
    log.save(_heldout_files(plan, run, last, host.score_heldout(last)))
    log.finish()
    host.on_rank_0(on_progress)
    return log.ledger


class _Log:
    """Plan, tables and ledger on disk, by rank 0; what a record vouches for is saved before the record."""

    def __init__(self, plan: Plan, host: StepHost, run: RunDir) -> None:
        self.ledger = Ledger.begin(plan)
        self._host, self._run = host, run
        host.on_rank_0(lambda: _clear(run))
        host.on_rank_0(lambda: write_json(run.plan, plan.to_json()))
        self._write()

    def save(self, files: Mapping[Path, ReferenceTable]) -> None:
        """Write tables."""

        def write() -> None:
            for path, table in files.items():
                table.save(path)

        self._host.on_rank_0(write)

    def record(self, step: StepPlan, **facts: Any) -> None:
        """Write what a step has done."""
        self.ledger = self.ledger.record(step.index, **facts)
        self._write()

    def finish(self) -> None:
        """Write that all steps are done."""
        self.ledger = replace(self.ledger, finished=True)
        self._write()

    def _write(self) -> None:
        self._host.on_rank_0(lambda: self.ledger.save(self._run.ledger))


def _clear(run: RunDir) -> None:
    """Remove tables that a run which finished no step has left here: no record vouches for them."""
    for folder in run.tables:
        for path in folder.glob("*.safetensors"):
            path.unlink()


def _heldout_files(plan: Plan, run: RunDir, model: str, tables: Tables) -> dict[Path, ReferenceTable]:
    return {run.heldout(model, column): tables[name] for column, name in enumerate(plan.heldout)}


class _Clock:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
