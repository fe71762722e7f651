"""A host for ``run_steps`` whose policy is one number θ, so that every γ can be worked out by hand.

θ is −1 for M_0 and grows by 2 a step: −1, 1, 3; begun from M_0 each time, it is 1 after every step. A row is one
number x, and log π(y_w) = −10 + θx over 2 tokens, log π(y_l) = −10 − θx over 4 tokens, hence γ = 2θx.
An external reference has θ = 0.5, hence γ = x.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sdpo_plugin import digests
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.refresh import Refresh
from sdpo_plugin.run_dir.history import save_history
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.records import Tables
from sdpo_plugin.run_dir.sealed import Files
from sdpo_plugin.runner import run_steps
from sdpo_plugin.sampling import sample
from sdpo_plugin.step_host import EarlyTables, PickedRows, Training, TrainOutcome
from sdpo_plugin.tables import LogProbTable

T = TypeVar("T")

D_1, D_2 = (1.0, 2.0, 3.0), (1.0, -1.0, 2.0, 6.0)
HELDOUT = {"val": (1.0, 2.0, -1.0, 2.0), "test": (-4.0,)}
EXTERNAL = "org/reference"
DIAGNOSTICS = {"max_rows": 3, "seed": 42}  # of a plan with diagnostics
THETA_0, THETA_EXTERNAL = -1.0, 0.5
WEIGHTS = "weights.json"
IDENTITY = {"base_model": {"content of the model": "b" * 64}}


# The calls that a host of two steps gets, from beginning to end.
CALLS = [
    "early tables",
    "export the start",
    "table of D_1 by M_0",
    "held-out tables by M_0, called M_0",
    "report",
    "settings of step-1",
    "train M_0 on D_1",
    "export M_1 to staging",
    "report",
    "table of D_2 by M_1",
    "held-out tables by M_1, called M_1",
    "report",
    "settings of step-2",
    "train M_1 on D_2",
    "export M_2 to staging",
    "report",
    "held-out tables by M_2, called M_2",
    "report",
]


class HostDiedError(Exception):
    """Raised by a ``FakeHost`` in the call in which it is to die."""


class FakeHost:
    """A ``StepHost`` that records every call in ``calls``, with the model it really had.

    Args:
        rows: D_1 … D_T.
        rank: of this process.
        dies_in: the call in which the host dies.
        early: models that give the log-probs of every D_t before step 1, "M_0" or ``EXTERNAL``, which gives those of
            the held-out sets too.
        adapter: M_0 is more than the base model: a fresh adapter, which has to be kept.
        rank_0: the host of rank 0, which has run already, and whose answers this rank gets.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[float]] = (D_1, D_2),
        rank: int = 0,
        dies_in: str = "",
        early: Sequence[str] = (),
        adapter: bool = False,
        rank_0: "FakeHost | None" = None,
    ) -> None:
        self.rows, self.rank, self.dies_in, self.early, self.adapter = rows, rank, dies_in, early, adapter
        self.theta, self.model = THETA_0, model_name(0)
        self.diagnostics = DIAGNOSTICS
        self.refreshes: dict[int, tuple[Refresh, ...]] = {}  # by step
        self.calls: list[str] = []
        self.answers: list[Any] = []  # of rank 0, in order: what the other ranks get
        self._told = iter(rank_0.answers if rank_0 is not None else [])
        self.rank_0_actions = 0
        self.trainings: list[Training] = []
        self.evaluations: list[tuple[str, str, str]] = []  # model, what it really was, run
        self.tables: list[LogProbTable] = []
        self.tables_made_early: dict[tuple[str, int], LogProbTable] = {}
        self.watch: Callable[[str], None] = lambda call: None
        self.after_action: Callable[[], None] = lambda: None
        self.on_report: Callable[[], None] = lambda: None
        self.run_dir: RunDir | None = None  # where histories go; that of the run

    def early_tables(self, steps: Sequence[StepPlan], heldout: Sequence[str]) -> EarlyTables:
        self._called("early tables" if steps[0].index == 1 else f"early tables of {named(steps)} by {self.model}")
        tables = []
        for model in self.early:
            theta = THETA_EXTERNAL if model == EXTERNAL else self.theta
            for step in steps:
                made = table_of(self.rows[step.index - 1], theta, model if model == EXTERNAL else self.model)
                self.tables_made_early[model, step.index] = made
                tables.append((step, made))
        if EXTERNAL not in self.early:
            return EarlyTables(tables)
        return EarlyTables(
            tables, {EXTERNAL: {name: table_of(HELDOUT[name], THETA_EXTERNAL, EXTERNAL) for name in heldout}}
        )

    def pick_rows(self, step: StepPlan) -> PickedRows:
        raise NotImplementedError("the steps of these plans have their rows")

    def reference_table(self, step: StepPlan) -> LogProbTable:
        self._called(f"table of D_{step.index} by {self.model}")
        self.tables.append(table_of(self.rows[step.index - 1], self.theta, self.model))
        return self.tables[-1]

    def heldout_tables(self, model: str, names: Sequence[str]) -> dict[str, LogProbTable]:
        if not names:
            return {}
        which = "" if len(names) == len(HELDOUT) else f" {', '.join(names)}"
        self._called(f"held-out tables{which} by {self.model}, called {model}")
        return {name: table_of(HELDOUT[name], self.theta, self.model) for name in names}

    def sampled_tables(self, model: str, steps: Sequence[StepPlan]) -> dict[int, LogProbTable]:
        if not steps:
            return {}
        self._called(f"samples of {named(steps)} by {self.model}, called {model}")
        tables = {}
        for step in steps:
            drawn, rows = sample(step, **self.diagnostics), self.rows[step.index - 1]
            table = table_of([rows[row] for row in drawn.rows], self.theta, self.model)
            tables[step.index] = dataclasses.replace(table, rows_digest=drawn.digest)
        return tables

    def evaluate(self, model: str, run_id: str) -> None:
        self.evaluations.append((model, self.model, run_id))

    def restart_policy(self) -> None:
        self._called(f"restart from {self.model}")
        self.theta, self.model = THETA_0, model_name(0)

    @property
    def trained_with(self) -> list[LogProbTable]:
        return [training.reference for training in self.trainings]

    @property
    def eval_tables(self) -> list[Tables]:
        return [training.heldout for training in self.trainings]

    def load_policy(self, model: str, directory: Path) -> None:
        self._called(f"load {model} from {directory.name}")
        self.theta = float(json.loads((directory / WEIGHTS).read_text()))
        self.model = model

    @contextmanager
    def another_model(self, model: str, directory: Path | None) -> Iterator[None]:
        self._called(f"take {model} from {'the base model' if directory is None else directory.name}")
        own = self.theta, self.model
        self.theta = THETA_0 if directory is None else float(json.loads((directory / WEIGHTS).read_text()))
        self.model = model
        yield
        self.theta, self.model = own

    def settings(self, step: StepPlan) -> dict[str, Any]:
        self._called(f"settings of {step.name}")
        return {"num_epochs": step.index}

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        self._called(f"train {self.model} on D_{step.index}")
        self.trainings.append(training)
        self.theta, self.model = self.theta + 2.0, model_name(step.index)
        # One update fewer than planned, as with early stopping: what was made differs from what was planned.
        earlier = 0.0 if training.checkpoint is None else 1000.0
        if self.run_dir is not None and self.rank == 0:
            save_history(self.run_dir, step, logged(step))
        updates, made = step.num_optimizer_steps - 1, self.refreshes.get(step.index)
        seconds = None if made is None else 0.5 * len(made)
        return TrainOutcome(math.log(2), 0.7 - 0.1 * step.index, updates, earlier, 0.1, made or (), seconds)

    def export_base_adapter(self, directory: Path) -> bool:
        self._called("export the start")
        if self.adapter:
            self._write(directory, "adapter_config.json")
        return self.adapter

    def export_step(self, step: StepPlan, directory: Path) -> None:
        self._called(f"export {self.model} to {directory.name}")
        self._write(directory, "config.json")

    def on_rank_0(self, action: Callable[[], T]) -> T:
        self.rank_0_actions += 1
        if self.rank != 0:
            answer: T = next(self._told)
            return answer
        self.answers.append(action())
        self.after_action()
        result: T = self.answers[-1]
        return result

    def written_by_all(self, directory: Path) -> Files:
        return {}

    def _write(self, directory: Path, marker: str) -> None:
        if self.rank == 0:
            directory.mkdir(parents=True)
            (directory / WEIGHTS).write_text(json.dumps(self.theta))
            (directory / marker).write_text(json.dumps({"model": self.model}))

    def report(self) -> None:
        self._called("report")
        self.on_rank_0(self.on_report)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        self.watch(call)
        if call == self.dies_in:
            raise HostDiedError(call)


def named(steps: Sequence[StepPlan]) -> str:
    """The data of these steps, for a call."""
    return ", ".join(f"D_{step.index}" for step in steps)


def logged(step: StepPlan) -> list[dict[str, Any]]:
    """What the host logs in a step: ln 2 and 0, then 0.05·t less and 0.25·t more with every update; not all numbers."""
    made = range(step.num_optimizer_steps - 1)
    entries: list[dict[str, Any]] = [
        {
            "step": update + 1,
            "loss": math.log(2) - 0.05 * step.index * update,
            "rewards/margins": 0.25 * step.index * update,
            "rewards/accuracies": min(0.5 * update, 1.0),
            "grad_norm": math.inf,
            "note": "text",
        }
        for update in made
    ]
    return [*entries, {"step": len(made), "train_runtime": 1.5}]


def table_of(rows: Sequence[float], theta: float, model: str) -> LogProbTable:
    """The table of these rows under the model whose number is ``theta``."""
    return make_table(-10 + theta * np.array(rows), -10 - theta * np.array(rows), model, rows)


def make_table(
    chosen: Sequence[float] | np.ndarray, rejected: Sequence[float] | np.ndarray, model: str, rows: Sequence[float]
) -> LogProbTable:
    """A table with 2 tokens a preferred and 4 a rejected answer."""
    return LogProbTable(
        np.array(chosen, dtype=np.float32),
        np.array(rejected, dtype=np.float32),
        np.full(len(chosen), 2, dtype=np.int64),
        np.full(len(chosen), 4, dtype=np.int64),
        model=model,
        rows_digest=digest(rows),
    )


def content(table: LogProbTable) -> tuple[object, ...]:
    """Everything that a table says, to compare it bit for bit."""
    columns = (table.chosen, table.rejected, table.chosen_tokens, table.rejected_tokens)
    return (*((column.dtype, column.tobytes()) for column in columns), table.model, table.rows_digest)


def digest(rows: Sequence[float]) -> str:
    """The digest that the fake host gives these rows."""
    return hashlib.sha256(repr(tuple(rows)).encode()).hexdigest()


def make_plan(
    rows: Sequence[Sequence[float]] = (D_1, D_2),
    heldout: Mapping[str, Sequence[float]] | None = None,
    export_steps: str = "all",
    reference: str = "previous",
    policy_init: str = "previous",
    diagnostics: Mapping[str, int] | None = None,
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
    sets = tuple(HELDOUT if heldout is None else heldout)
    return Plan("base/model", steps, sets, export_steps, diagnostics=dict(diagnostics or {}))


def of_other_rows(plan: Plan, **changes: object) -> Plan:
    return dataclasses.replace(plan, steps=(plan.steps[0], dataclasses.replace(plan.steps[1], **changes)))


def run(host: FakeHost, run_dir: RunDir, plan: Plan | None = None) -> Ledger:
    """A new run, to its end."""
    plan = plan or make_plan()
    host.run_dir = run_dir
    journal = Journal(run_dir, host, plan, Ledger.begin(plan, IDENTITY))
    run_steps(plan, host, journal)
    return journal.ledger


def with_digest(content: Mapping[str, Any]) -> str:
    """The file of a JSON record with this content, whatever it is, and a digest that fits."""
    content = {key: value for key, value in content.items() if key != "digest"}
    return json.dumps({**content, "digest": digests.of_json(content)})


def each_flipped_bit(path: Path) -> Iterator[bytes]:
    """Flip one bit of a file after the other, in place; yield the bytes with that bit flipped."""
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            os.pwrite(file.fileno(), data[bit // 8 : bit // 8 + 1], bit // 8)
            yield bytes(data)
            os.pwrite(file.fileno(), whole[bit // 8 : bit // 8 + 1], bit // 8)


def each_cut(path: Path) -> Iterator[int]:
    """Cut a JSON file one byte shorter at a time, from its last brace on; yield its size."""
    for size in reversed(range(len(path.read_bytes().rstrip()))):
        os.truncate(path, size)
        yield size
