"""The work that the runner leaves to the host, and what it is given and gets back."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.refresh import Refresh
from sdpo_plugin.run_dir.records import Ranks, Samples, Tables
from sdpo_plugin.tables import LogProbTable


@dataclass(frozen=True)
class EarlyTables:
    """Tables that are made before step 1.

    Attributes:
        steps: log-probs of D_t: by M_0 where they order the data, by the reference where it never changes.
        heldout: log-probs of the held-out sets by an external reference, under its name.
    """

    steps: Sequence[tuple[StepPlan, LogProbTable]] = ()
    heldout: Mapping[str, Tables] = field(default_factory=dict)


@dataclass(frozen=True)
class PickedRows:
    """D_t, as M_{t-1} has picked it out of what was left of the pool.

    Attributes:
        plan: of the run, with these rows.
        rows: their numbers in the pool, ascending, shape (n,).
        tables: their log-probs by M_{t-1}, out of the pass that ranked them, and by M_0, which has ranked the pool.
        seconds: that it took.
    """

    plan: Plan
    rows: NDArray[np.int64]
    tables: Sequence[LogProbTable]
    seconds: float


@dataclass(frozen=True)
class Training:
    """Reference, held-out tables and start of one training.

    Attributes:
        reference: table of D_t.
        heldout: the held-out sets under the same reference, for the host's evaluations within the step.
        about: what the seal of each checkpoint has to say.
        checkpoint: where a half-trained step is resumed; None: from the policy as it stands.
    """

    reference: LogProbTable
    heldout: Tables
    about: Mapping[str, str]
    checkpoint: Path | None = None


@dataclass(frozen=True)
class TrainOutcome:
    """The result of training one step: losses in nats, updates made, seconds spent on it before it was resumed, β; each
    time that its reference was made again, and the seconds of that."""

    first_loss: float
    final_loss: float
    num_optimizer_steps: int
    earlier_seconds: float = 0.0
    beta: float | None = None
    refreshes: tuple[Refresh, ...] = ()
    refresh_seconds: float | None = None


class StepHost(Ranks, Protocol):
    """The work that the runner leaves to the host. Every rank calls every method, in the same order."""

    def early_tables(self, steps: Sequence[StepPlan], heldout: Sequence[str]) -> EarlyTables:
        """Tables that are made before step 1; empty where every reference is the step before.

        The policy as it stands is M_0. In a run that has grown it is asked again, for what is new.

        Args:
            steps: those whose D_t is asked for.
            heldout: names of the held-out sets, which an external reference is asked for.
        """

    def pick_rows(self, step: StepPlan) -> PickedRows:
        """The easiest rows of what is left of the pool for the policy as it stands, with their log-probs."""

    def reference_table(self, step: StepPlan) -> LogProbTable:
        """Log-probs of D_t under the policy as it stands; the whole table on every rank."""

    def heldout_tables(self, model: str, names: Sequence[str]) -> Tables:
        """Log-probs of these held-out sets under the policy as it stands, by name of the set."""

    def sampled_tables(self, model: str, steps: Sequence[StepPlan]) -> Samples:
        """Log-probs of sampled rows of these D_j under the policy as it stands, by j; one that fails is left out."""

    def evaluate(self, model: str, run_id: str) -> None:
        """Have the policy as it stands, which is ``model``, evaluated on benchmarks, where the config asks for them.

        What this run has evaluated already is not evaluated again. A failure is recorded, and is no error.
        """

    def restart_policy(self) -> None:
        """Make the policy M_0 again: the base weights, or the adapter as it was initialised."""

    def load_policy(self, model: str, directory: Path) -> None:
        """Make the policy ``model`` as it was exported to ``directory``, in a process that resumes a run."""

    def another_model(self, model: str, directory: Path | None) -> AbstractContextManager[None]:
        """Let an earlier model give the log-probs in the place of the policy, which is as it was after that.

        Args:
            model: its name.
            directory: where it was exported to; None: it is the base model.
        """

    def settings(self, step: StepPlan) -> dict[str, Any]:
        """The hyper-parameters that the step trains with, as JSON."""

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        """Train the policy on D_t against this reference, with a fresh optimizer, schedule and seed.

        Every checkpoint is sealed with ``training.about`` when it is whole.
        """

    def export_base_adapter(self, directory: Path) -> bool:
        """Write what makes M_0 besides the base model: a fresh adapter. False where there is nothing."""

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """Write the policy as it stands as a loadable model with its tokenizer."""

    def report(self) -> None:
        """Tell of the run so far: before and after every training, and at the end, when all is on disk."""
