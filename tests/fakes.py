"""A host for ``run_steps`` whose policy is one number θ, so that every γ can be worked out by hand.

θ is −1 for M_0 and grows by 2 a step: −1, 1, 3. A row is one number x, and
log π(y_w) = −10 + θx over 2 tokens, log π(y_l) = −10 − θx over 4 tokens, hence γ = 2θx.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.runner import Tables, TrainOutcome

D_1, D_2 = (1.0, 2.0, 3.0), (1.0, -1.0, 2.0, 6.0)
HELDOUT = {"val": (1.0, 2.0, -1.0, 2.0), "test": (-4.0,)}


class HostDiedError(Exception):
    """What a ``FakeHost`` raises where it is told to die."""


class FakeHost:
    """A ``StepHost`` that says in ``calls`` what it was asked, naming the model it really had."""

    def __init__(self, rows: Sequence[Sequence[float]] = (D_1, D_2), rank: int = 0, dies_in: str = "") -> None:
        self.rows, self.rank, self.dies_in = rows, rank, dies_in
        self.theta = -1.0
        self.calls: list[str] = []
        self.rank_0_actions = 0
        self.trained_with: list[ReferenceTable] = []
        self.scored: list[ReferenceTable] = []
        self.exported_to: list[Path] = []
        self.eval_tables: list[Tables] = []
        self.watch: Callable[[str], None] = lambda call: None
        self.after_action: Callable[[], None] = lambda: None

    @property
    def model(self) -> str:
        return model_name(round((self.theta + 1) / 2))

    def score_step(self, step: StepPlan) -> ReferenceTable:
        self._called(f"score D_{step.index} by {self.model}")
        self.scored.append(self._score(self.rows[step.index - 1]))
        return self.scored[-1]

    def score_heldout(self, model: str) -> dict[str, ReferenceTable]:
        self._called(f"score held-out by {self.model}, called {model}")
        return {name: self._score(rows) for name, rows in HELDOUT.items()}

    def train_step(self, step: StepPlan, reference: ReferenceTable, heldout: Tables) -> TrainOutcome:
        self._called(f"train {self.model} on D_{step.index}")
        self.trained_with.append(reference)
        self.eval_tables.append(heldout)
        self.theta += 2.0
        # One update fewer than planned, as with early stopping: what was made differs from what was planned.
        return TrainOutcome(math.log(2), 0.7 - 0.1 * step.index, step.num_optimizer_steps - 1)

    def export_step(self, step: StepPlan, directory: Path) -> None:
        self._called(f"export {self.model} to {directory.name}")
        self.exported_to.append(directory)

    def on_rank_0(self, action: Callable[[], None]) -> None:
        self.rank_0_actions += 1
        if self.rank == 0:
            action()
            self.after_action()

    def progress(self) -> None:
        self._called("progress")

    def _called(self, call: str) -> None:
        self.calls.append(call)
        self.watch(call)
        if call == self.dies_in:
            raise HostDiedError(call)

    def _score(self, rows: Sequence[float]) -> ReferenceTable:
        return make_table(-10 + self.theta * np.array(rows), -10 - self.theta * np.array(rows), self.model, rows)


def make_table(
    chosen: Sequence[float] | np.ndarray, rejected: Sequence[float] | np.ndarray, model: str, rows: Sequence[float]
) -> ReferenceTable:
    """A table with 2 tokens a preferred and 4 a rejected answer."""
    return ReferenceTable(
        np.array(chosen, dtype=np.float32),
        np.array(rejected, dtype=np.float32),
        np.full(len(chosen), 2, dtype=np.int64),
        np.full(len(chosen), 4, dtype=np.int64),
        model=model,
        rows_digest=digest(rows),
    )


def digest(rows: Sequence[float]) -> str:
    """The digest that the fake host gives these rows."""
    return hashlib.sha256(repr(tuple(rows)).encode()).hexdigest()


def make_plan(
    rows: Sequence[Sequence[float]] = (D_1, D_2),
    heldout: Mapping[str, Sequence[float]] | None = None,
    export_steps: str = "all",
) -> Plan:
    """The plan that fits ``FakeHost``: batches of one row, one epoch."""
    steps = tuple(
        StepPlan(
            index=index,
            name=f"step-{index}",
            sources=(f"pairs-{index}.jsonl",),
            num_rows=len(values),
            num_dropped=0,
            num_heldout=0,
            num_optimizer_steps=len(values),
            rows_digest=digest(values),
            reference=model_name(index - 1),
            policy_init=model_name(index - 1),
        )
        for index, values in enumerate(rows, 1)
    )
    return Plan("base/model", steps, tuple(HELDOUT if heldout is None else heldout), export_steps)
