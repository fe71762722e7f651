"""A host with real files and exact arithmetic, for runs that are killed: results can be compared bit for bit.

The policy is a vector w; a row is a number x with the features (x, x², sin x), and log π(y_w) = −10 + w·φ(x),
log π(y_l) = −10 − w·φ(x). Training shuffles the rows anew in each epoch and makes one update a row, with momentum and
a little noise, so that the result depends on the order of the rows, on the reference, on the optimizer's state and on
the random numbers. Every policy records how often each row was trained on the way to it.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.report.build import report_run
from sdpo_plugin.run_dir.checkpoints import checkpoints
from sdpo_plugin.run_dir.cleanup import clear, sweep
from sdpo_plugin.run_dir.fresh import require_fresh
from sdpo_plugin.run_dir.growth import Wanted
from sdpo_plugin.run_dir.history import save_history
from sdpo_plugin.run_dir.journal import Journal, close_run
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.lock import RunLock
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.records import Samples, Tables
from sdpo_plugin.run_dir.resume import FRESH, find_start, with_last_model
from sdpo_plugin.run_dir.sealed import Files, read_seal, seal
from sdpo_plugin.runner import run_steps
from sdpo_plugin.sampling import sample
from sdpo_plugin.step_host import EarlyTables, Training, TrainOutcome
from sdpo_plugin.tables import LogProbTable
from tests.fakes import DIAGNOSTICS, EXTERNAL, IDENTITY, make_plan, make_table

T = TypeVar("T")
ROWS = ((0.3, -1.1, 0.7, 1.9), (1.3, -0.4, 0.6), (-0.9, 0.2, 1.7, -0.5, 0.8))
HELDOUT = {"val": (0.5, -0.7), "test": (1.1,)}
EPOCHS, EVERY, KEPT = 2, 3, 2  # updates between checkpoints; checkpoints that stay
W_BASE, W_EXTERNAL = np.array([0.5, -0.25, 0.125]), np.array([0.2, 0.1, -0.3])


@dataclass(frozen=True)
class Variant:
    """The kind of run, in the words of the config; ``later``: step 3 brings a held-out set with it."""

    reference: str = "previous"
    policy_init: str = "previous"
    export_steps: str = "all"
    num_steps: int = 3
    later: bool = False

    def __str__(self) -> str:
        return f"{self.reference}-from-{self.policy_init}-keep-{self.export_steps}-{self.num_steps}"

    @property
    def rows(self) -> Sequence[Sequence[float]]:
        return ROWS[: self.num_steps]

    @property
    def heldout(self) -> Mapping[str, Sequence[float]]:
        return {"val": HELDOUT["val"]} if self.later and self.num_steps < 3 else HELDOUT

    def plan(self) -> Plan:
        plan = make_plan(self.rows, self.heldout, self.export_steps, self.reference, self.policy_init, DIAGNOSTICS)
        updates = [dataclasses.replace(step, num_optimizer_steps=EPOCHS * step.num_rows) for step in plan.steps]
        return dataclasses.replace(plan, steps=tuple(updates))

    def counts(self) -> list[list[int]]:
        """How often each row is trained on the way to M_T."""
        last = self.num_steps - 1
        on_the_way = [index == last or (index < last and self.policy_init == "previous") for index in range(len(ROWS))]
        return [[EPOCHS * trained] * len(rows) for trained, rows in zip(on_the_way, ROWS, strict=True)]


@dataclass
class Policy:
    """A model, and how often each row of D_1 … D_T was trained on the way to it."""

    weights: np.ndarray
    counts: list[list[int]] = field(default_factory=lambda: [[0] * len(rows) for rows in ROWS])

    def save(self, directory: Path, marker: str, **facts: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / "weights.bin", self.weights.tobytes())
        write(directory / marker, json.dumps({"counts": self.counts, **facts}).encode())

    @classmethod
    def load(cls, directory: Path, marker: str) -> "Policy":
        weights = np.frombuffer((directory / "weights.bin").read_bytes())
        return cls(weights.copy(), json.loads((directory / marker).read_bytes())["counts"])


@dataclass
class Progress:
    """Everything besides the policy that decides how a step ends."""

    random: np.random.Generator
    momentum: np.ndarray = field(default_factory=lambda: np.zeros(3))
    order: list[int] = field(default_factory=list)
    done: int = 0
    loss: float = 0.0


class DyingHost:
    """A ``StepHost`` of one process.

    Args:
        run: where the run is.
        variant: what kind of run.
        seed: of the adapter that a fresh M_0 has; each process draws another one, as a host without a seed would.
        on_work: called before everything that takes a real host time: each update, each pass for log-probs.
    """

    def __init__(self, run: RunDir, variant: Variant, seed: int, on_work: Callable[[], None]) -> None:
        self.run, self.variant, self.seed, self.on_work = run, variant, seed, on_work
        self.policy = Policy(W_BASE + 0.1 * np.random.default_rng(seed).normal(size=3))

    def early_tables(self, steps: Sequence[StepPlan], heldout: Sequence[str]) -> EarlyTables:
        name, weights = ("M_0", self.policy.weights) if self.variant.reference == "base" else (EXTERNAL, W_EXTERNAL)
        if self.variant.reference == "previous":
            return EarlyTables()
        self.on_work()
        tables = [(step, table_of(ROWS[step.index - 1], weights, name)) for step in steps]
        external = {set_: table_of(HELDOUT[set_], weights, name) for set_ in heldout}
        return EarlyTables(tables, {EXTERNAL: external} if name == EXTERNAL else {})

    def reference_table(self, step: StepPlan) -> LogProbTable:
        self.on_work()
        return table_of(ROWS[step.index - 1], self.policy.weights, step.reference)

    def heldout_tables(self, model: str, names: Sequence[str]) -> Tables:
        if names:
            self.on_work()
        return {name: table_of(HELDOUT[name], self.policy.weights, model) for name in names}

    @contextmanager
    def another_model(self, model: str, directory: Path | None) -> Iterator[None]:
        own = self.policy
        assert directory is not None, "M_0 is an adapter here"
        self.load_policy(model, directory)
        yield
        self.policy = own

    def sampled_tables(self, model: str, steps: Sequence[StepPlan]) -> Samples:
        if steps:
            self.on_work()
        tables = {}
        for step in steps:
            drawn, rows = sample(step, **DIAGNOSTICS), ROWS[step.index - 1]
            table = table_of([rows[row] for row in drawn.rows], self.policy.weights, model)
            tables[step.index] = dataclasses.replace(table, rows_digest=drawn.digest)
        return tables

    def evaluate(self, model: str, run_id: str) -> None: ...

    def restart_policy(self) -> None:
        self.policy = Policy.load(self.run.base_adapter, "adapter_config.json")

    def load_policy(self, model: str, directory: Path) -> None:
        self.policy = Policy.load(directory, "adapter_config.json" if model == "M_0" else "config.json")

    def settings(self, step: StepPlan) -> dict[str, Any]:
        return {"num_epochs": EPOCHS, "learning_rate": 0.1 / step.index}

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        assert {table.model for table in training.heldout.values()} == {step.reference}
        now, facts = Progress(np.random.default_rng(step.index)), {}
        if training.checkpoint is not None:
            now, facts = self._restore(training.checkpoint), read_seal(training.checkpoint).facts
        while now.done < step.num_optimizer_steps:
            self.on_work()
            self._update(step, now, training.reference)
            facts.setdefault("first_loss", now.loss)
            if now.done % EVERY == 0:
                self._checkpoint(self.run.step(step), now, training.about, facts)
        save_history(self.run, step, [{"step": now.done, "loss": now.loss}])
        return TrainOutcome(facts["first_loss"], now.loss, now.done)

    def export_base_adapter(self, directory: Path) -> bool:
        self.policy.save(directory, "adapter_config.json", seed=self.seed)
        return True

    def export_step(self, step: StepPlan, directory: Path) -> None:
        self.policy.save(directory, "config.json", step=step.index)

    def report(self) -> None:
        report_run(self.run)

    def on_rank_0(self, action: Callable[[], T]) -> T:
        return action()

    def written_by_all(self, directory: Path) -> Files:
        return {}

    def _update(self, step: StepPlan, now: Progress, reference: LogProbTable) -> None:
        rows = ROWS[step.index - 1]
        if now.done % len(rows) == 0:
            now.order = [int(row) for row in now.random.permutation(len(rows))]
        row = now.order[now.done % len(rows)]
        x = features(rows[row : row + 1])[0]
        margin = float(2 * self.policy.weights @ x - (reference.chosen[row] - reference.rejected[row]))
        now.loss = float(np.log1p(np.exp(-margin)))
        gradient = -2 * x / (1 + np.exp(margin)) + 0.01 * now.random.normal(size=3)
        now.momentum = 0.9 * now.momentum + gradient
        self.policy.weights = self.policy.weights - 0.1 / step.index * now.momentum
        self.policy.counts[step.index - 1][row] += 1
        now.done += 1

    def _checkpoint(self, place: Path, now: Progress, about: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """As the host does it: remove a torn one of that name, write the files, seal them, remove the older ones."""
        directory = place / f"checkpoint-{now.done}"
        shutil.rmtree(directory, ignore_errors=True)
        self.policy.save(directory, "config.json")
        write(directory / "optimizer.bin", now.momentum.tobytes())
        state = {"random": now.random.bit_generator.state, "order": now.order, "done": now.done, "loss": now.loss}
        write(directory / "state" / "state.json", json.dumps(state).encode())
        seal(directory, about, facts)
        for older in checkpoints(place)[:-KEPT]:
            shutil.rmtree(older)

    def _restore(self, directory: Path) -> Progress:
        self.policy = Policy.load(directory, "config.json")
        state = json.loads((directory / "state" / "state.json").read_bytes())
        random = np.random.default_rng()
        random.bit_generator.state = state["random"]
        momentum = np.frombuffer((directory / "optimizer.bin").read_bytes()).copy()
        return Progress(random, momentum, state["order"], state["done"], state["loss"])


def advance(out: Path, variant: Variant, seed: int, on_work: Callable[[], None] = lambda: None) -> None:
    """Run one process: begin the run in ``out``, or resume it, to its end."""
    run, plan = RunDir(out), variant.plan()
    lock = RunLock(run.lock)
    try:
        start, ledger = FRESH, None
        if run.ledger.exists():
            wanted = Wanted(plan, IDENTITY, [list(variant.heldout)] * len(plan.steps))
            start = with_last_model(run, find_start(run, None, wanted))
            ledger = start.ledger
            if start.action.kind == "nothing":
                assert ledger is not None
                sweep(run, ledger)
                return
        else:
            require_fresh(run, [step.name for step in plan.steps])
            clear(run)
        host = DyingHost(run, variant, seed, on_work)
        run_steps(plan, host, Journal(run, host, plan, ledger or Ledger.begin(plan, IDENTITY)), start)
        host.policy.save(out, "config.json")
        close_run(run, keep_last=variant.export_steps == "all")
        report_run(run)
    finally:
        lock.release()


def table_of(rows: Sequence[float], weights: np.ndarray, model: str) -> LogProbTable:
    """The table of these rows under the model w."""
    half_gamma = features(rows) @ weights
    return make_table(-10 + half_gamma, -10 - half_gamma, model, rows)


def features(rows: Sequence[float]) -> np.ndarray:
    x = np.array(rows)
    return np.stack([x, x * x, np.sin(x)], axis=1)


def write(path: Path, data: bytes) -> None:
    """Write a file as a host does: in place and in pieces, so that a process that dies leaves half of it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for piece in halves(data):
            file.write(piece)


def halves(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]
