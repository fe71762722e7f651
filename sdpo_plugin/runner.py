"""Stepwise DPO (sDPO, arXiv 2403.19270, §3) on one page.

For t = 1 … T: the policy as it stands, M_{t-1}, scores D_t and so is the reference; then it is trained on D_t
from where it stands and becomes M_t. With another `reference:` the same table is filled before step 1; with
`policy_init: base` the policy goes back to M_0 first. The runner knows neither models nor trainers: a ``StepHost``
does the work. After each action the ledger says what is done, and the next action follows from the ledger alone, so
that a run that died goes on by the same path that a fresh one takes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.log import Log, Ranks
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.resume import FRESH, M_0, Start, about_checkpoint, next_action

Tables = Mapping[str, ReferenceTable]


@dataclass(frozen=True)
class TrainOutcome:
    """What training one step gave: losses in nats, updates made, seconds that went into it before it was resumed."""

    first_loss: float
    final_loss: float
    num_optimizer_steps: int
    earlier_seconds: float = 0.0


@dataclass(frozen=True)
class EarlyTables:
    """What is scored before step 1.

    Attributes:
        steps: log-probs of D_t: by M_0 where they order the data, by the reference where it never changes.
        heldout: log-probs of the held-out sets by an external reference, under its name.
    """

    steps: Sequence[tuple[StepPlan, ReferenceTable]] = ()
    heldout: Mapping[str, Tables] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a step is trained with.

    Attributes:
        reference: table of D_t.
        heldout: the held-out sets under the same reference, for the host's evaluations within the step.
        about: what the seal of each checkpoint has to say.
        checkpoint: where a half-trained step goes on; None: from the policy as it stands.
    """

    reference: ReferenceTable
    heldout: Tables
    about: Mapping[str, str]
    checkpoint: Path | None = None


class StepHost(Ranks, Protocol):
    """What the runner asks of the host. Every rank calls every method, in the same order."""

    def score_before(self, plan: Plan) -> EarlyTables:
        """Tables that are made before step 1; empty where every reference is the step before."""

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """Log-probs of D_t under the policy as it stands; the whole table on every rank."""

    def score_heldout(self, model: str) -> Tables:
        """Log-probs of each held-out set under the policy as it stands, by name of the set."""

    def restart_policy(self) -> None:
        """Make the policy M_0 again: the base weights, or the adapter as it was initialised."""

    def load_policy(self, model: str, directory: Path) -> None:
        """Make the policy ``model`` as it was exported to ``directory``, in a process that goes on with a run."""

    def settings(self, step: StepPlan) -> dict[str, Any]:
        """The hyper-parameters that the step trains with, as JSON."""

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        """Train the policy on D_t against this reference, with a fresh optimizer, schedule and seed.

        Every checkpoint is sealed with ``training.about`` when it is whole.
        """

    def export_start(self, directory: Path) -> bool:
        """Write what makes M_0 besides the base model: a fresh adapter. False where there is nothing."""

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """Write the policy as it stands as a loadable model with its tokenizer."""


def run_steps(
    plan: Plan,
    host: StepHost,
    run: RunDir,
    ledger: Ledger,
    on_progress: Callable[[], None],
    start: Start = FRESH,
) -> Ledger:
    """Train the whole chain, or what is left of it, and leave in ``run`` what it did.

    Args:
        plan: the steps.
        host: does the work.
        run: where plan, ledger and tables go.
        ledger: a new one, or that of the run that goes on.
        on_progress: called on rank 0 after every step, when ledger and tables are on disk.
        start: where a run goes on.

    Returns:
        The ledger of the finished chain.

    Raises:
        ReferenceTableError: a step's table is not whole or belongs to other rows; the step has not begun.
        StartGateError: a step did not begin at its reference.
    """
    chain = _Chain(plan, host, run, Log(plan, host, run, ledger), start.checkpoint)
    if plan.export_steps == "last":
        chain.log.drop_superseded()
    if start.model_dir is not None:
        host.load_policy(start.action.model, start.model_dir)
    while (action := next_action(chain.log.ledger)).kind not in ("save", "nothing"):
        step = plan.steps[action.step - 1] if action.step else None
        if action.kind == "prepare":
            chain.prepare()
        elif action.kind == "score":
            assert step is not None
            chain.score(step)
        elif action.kind == "train":
            assert step is not None
            chain.train(step)
            host.on_rank_0(on_progress)
        else:
            chain.finish()
            host.on_rank_0(on_progress)
    return chain.log.ledger


@dataclass
class _Chain:
    """The actions. What each vouches for is on disk before its record."""

    plan: Plan
    host: StepHost
    run: RunDir
    log: Log
    checkpoint: Path | None

    def prepare(self) -> None:
        early = self.host.score_before(self.plan)
        files = {}
        for step, table in early.steps:
            is_reference = table.model == step.reference
            files[self.run.reference(step) if is_reference else self.run.score(table.model, step)] = table
        for tables in early.heldout.values():
            files |= self._heldout_files("reference", tables)
        if self.host.export_start(self.run.staging):
            self.log.publish(M_0, self.run.start)
        self.log.save(files)
        self.log.set(prepared=True)

    def score(self, step: StepPlan) -> None:
        policy, clock = model_name(step.index - 1), _Clock()
        files = {}
        if not self.log.has(self.run.reference(step)):
            reference = self.host.score_step(step)
            if step.rows_digest is not None:
                reference.require_rows(step.num_rows, step.rows_digest)
            files[self.run.reference(step)] = reference
        self.log.save(files | self._heldout_files(policy, self.host.score_heldout(policy)))
        self.log.record(step, state="scored", score_seconds=clock.lap())

    def train(self, step: StepPlan) -> None:
        clock = _Clock()
        reference = self.log.read(self.run.reference(step))
        assert reference.model == step.reference
        if step.rows_digest is not None:
            reference.require_rows(step.num_rows, step.rows_digest)
        checkpoint, self.checkpoint = self.checkpoint, None
        self.log.record(step, state="training", settings=self.host.settings(step))
        if step.policy_init == M_0 and step.index > 1:
            self.host.restart_policy()
        about = about_checkpoint(self.run, self.log.ledger, self.log.ledger.steps[step.index - 1])
        outcome = self.host.train_step(step, Training(reference, self._heldout(step), about, checkpoint))
        self.log.record(
            step,
            state="trained",
            train_seconds=clock.lap() + outcome.earlier_seconds,
            first_loss=outcome.first_loss,
            final_loss=outcome.final_loss,
            num_optimizer_steps=outcome.num_optimizer_steps,
        )
        self.host.export_step(step, self.run.staging)
        self.log.publish(model_name(step.index), self.run.step(step))
        self.log.record(step, state="exported", export_seconds=clock.lap())
        if self.plan.export_steps == "last":
            self.log.drop_superseded()

    def finish(self) -> None:
        last = model_name(len(self.plan.steps))
        self.log.save(self._heldout_files(last, self.host.score_heldout(last)))
        self.log.set(finished=True)

    def _heldout(self, step: StepPlan) -> dict[str, ReferenceTable]:
        models = [model_name(index) for index in range(len(self.plan.steps))]
        owner = step.reference if step.reference in models else "reference"
        return {name: self.log.read(self.run.heldout(owner, col)) for col, name in enumerate(self.plan.heldout)}

    def _heldout_files(self, owner: str, tables: Tables) -> dict[Path, ReferenceTable]:
        return {self.run.heldout(owner, column): tables[name] for column, name in enumerate(self.plan.heldout)}


class _Clock:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
