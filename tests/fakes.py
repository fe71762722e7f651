"""A host for ``run_steps`` whose policy is one number θ, so that every γ can be worked out by hand.

θ is −1 for M_0 and grows by 2 a step: −1, 1, 3; begun from M_0 each time, it is 1 after every step. A row is one
number x, and log π(y_w) = −10 + θx over 2 tokens, log π(y_l) = −10 − θx over 4 tokens, hence γ = 2θx.
An external reference has θ = 0.5, hence γ = x.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.runner import EarlyTables, Tables, TrainOutcome

D_1, D_2 = (1.0, 2.0, 3.0), (1.0, -1.0, 2.0, 6.0)
HELDOUT = {"val": (1.0, 2.0, -1.0, 2.0), "test": (-4.0,)}
EXTERNAL = "org/reference"
THETA_0, THETA_EXTERNAL = -1.0, 0.5


class HostDiedError(Exception):
    """What a ``FakeHost`` raises where it is told to die."""


class FakeHost:
    """A ``StepHost`` that says in ``calls`` what it was asked, naming the model it really had.

    Args:
        rows: D_1 … D_T.
        rank: of this process.
        dies_in: the call in which the host dies.
        early: models that score every D_t before step 1, "M_0" or ``EXTERNAL``, which scores the held-out sets too.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[float]] = (D_1, D_2),
        rank: int = 0,
        dies_in: str = "",
        early: Sequence[str] = (),
    ) -> None:
        self.rows, self.rank, self.dies_in, self.early = rows, rank, dies_in, early
        self.theta, self.model = THETA_0, model_name(0)
        self.calls: list[str] = []
        self.rank_0_actions = 0
        self.trained_with: list[ReferenceTable] = []
        self.scored: list[ReferenceTable] = []
        self.scored_early: dict[tuple[str, int], ReferenceTable] = {}
        self.exported_to: list[Path] = []
        self.eval_tables: list[Tables] = []
        self.watch: Callable[[str], None] = lambda call: None
        self.after_action: Callable[[], None] = lambda: None

    def score_before(self, plan: Plan) -> EarlyTables:
        self._called("score before step 1")
        tables = []
        for model in self.early:
            theta = THETA_EXTERNAL if model == EXTERNAL else THETA_0
            for step, rows in zip(plan.steps, self.rows, strict=True):
                self.scored_early[model, step.index] = score(rows, theta, model)
                tables.append((step, self.scored_early[model, step.index]))
        external = {name: score(rows, THETA_EXTERNAL, EXTERNAL) for name, rows in HELDOUT.items()}
        return EarlyTables(tables, {EXTERNAL: external} if EXTERNAL in self.early else {})

    def score_step(self, step: StepPlan) -> ReferenceTable:
        self._called(f"score D_{step.index} by {self.model}")
        self.scored.append(score(self.rows[step.index - 1], self.theta, self.model))
        return self.scored[-1]

    def score_heldout(self, model: str) -> dict[str, ReferenceTable]:
        self._called(f"score held-out by {self.model}, called {model}")
        return {name: score(rows, self.theta, self.model) for name, rows in HELDOUT.items()}

    def restart_policy(self) -> None:
        self._called(f"restart from {self.model}")
        self.theta, self.model = THETA_0, model_name(0)

    def train_step(self, step: StepPlan, reference: ReferenceTable, heldout: Tables) -> TrainOutcome:
        self._called(f"train {self.model} on D_{step.index}")
        self.trained_with.append(reference)
        self.eval_tables.append(heldout)
        self.theta, self.model = self.theta + 2.0, model_name(step.index)
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


def score(rows: Sequence[float], theta: float, model: str) -> ReferenceTable:
    """The table of these rows under the model whose number is ``theta``."""
    return make_table(-10 + theta * np.array(rows), -10 - theta * np.array(rows), model, rows)


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
    reference: str = "previous",
    policy_init: str = "previous",
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
            reference={"previous": model_name(index - 1), "base": "M_0"}.get(reference, reference),
            policy_init=model_name(index - 1 if policy_init == "previous" else 0),
        )
        for index, values in enumerate(rows, 1)
    )
    return Plan("base/model", steps, tuple(HELDOUT if heldout is None else heldout), export_steps)
