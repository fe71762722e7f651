"""The ledger of a run in a running process: what it says is done, and the tables that it vouches for. Nothing here
writes; ``journal.py`` does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.run_dir.ledger import Hook, Ledger
from sdpo_plugin.run_dir.models import model_dir
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import Files
from sdpo_plugin.run_dir.table_files import read_table
from sdpo_plugin.tables import LogProbTable

T = TypeVar("T")
Tables = Mapping[str, LogProbTable]
"""Log-probs of the held-out sets under one model, by name of the set."""

Samples = Mapping[int, LogProbTable]
"""Log-probs of sampled rows of D_j under one model, by j."""
NONE: Samples = MappingProxyType({})

EXTERNAL = "reference"  # owner of the held-out tables of an external reference


class Ranks(Protocol):
    """The ranks, as far as writing needs them."""

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0; its result, or the error that it raised, is every rank's."""

    def written_by_all(self, directory: Path) -> Files:
        """Put files on disk, each rank its share of them; the digests of those that were, on every rank."""


@dataclass(frozen=True)
class LookBack:
    """What an earlier model has not been asked, because a run has grown since.

    Attributes:
        model: "M_0" … "M_{t-2}".
        directory: where it is read from; None where it is the base model itself.
        references: steps whose reference it is, and that have no table yet.
        heldout: names of the held-out sets that are new.
        steps: those of whose rows it is asked for the report.
    """

    model: str
    directory: Path | None
    references: Sequence[StepPlan]
    heldout: Sequence[str]
    steps: Sequence[StepPlan]


class Records:
    """The ledger of a run, in memory on every rank, and questions to it.

    Args:
        run: the run directory.
        ranks: of this run.
        plan: as it stands now.
        ledger: so far.
    """

    def __init__(self, run: RunDir, ranks: Ranks, plan: Plan, ledger: Ledger) -> None:
        self._run, self._ranks, self._plan, self.ledger = run, ranks, plan, ledger

    @property
    def is_prepared(self) -> bool:
        """Whether all that is computed before step 1 is on disk."""
        return self.ledger.prepared

    @property
    def is_finished(self) -> bool:
        """Whether the held-out log-probs of M_T are on disk."""
        return self.ledger.finished

    def is_referenced(self, step: StepPlan) -> bool:
        """Whether the step has its reference table, and the held-out sets the log-probs of M_{t-1}."""
        return self.ledger.records[step.index - 1].state != "planned"

    def is_exported(self, step: StepPlan) -> bool:
        """Whether M_t has been written, so that the step never trains again."""
        return self.ledger.records[step.index - 1].state == "exported"

    def is_due(self, hook: Hook, step: StepPlan) -> bool:
        """Whether a user's hook is still to be called: before a step has its reference, or while M_t stands."""
        record = self.ledger.records[step.index - 1]
        in_time = record.state == "planned" if hook == "before_step" else record.state == "exported" and record.kept
        return in_time and hook not in record.called

    def has_table(self, step: StepPlan) -> bool:
        """Whether the reference table of D_t was made before step 1."""
        return self._has(self._run.reference(step))

    def reference(self, step: StepPlan) -> LogProbTable:
        """The reference table of D_t, from disk.

        Raises:
            ReferenceTableError: it is missing, damaged or of other rows; nothing is trained with it.
        """
        table = self._read(self._run.reference(step))
        assert table.model == step.reference
        require_rows(step, table)
        return table

    def heldout(self, step: StepPlan) -> dict[str, LogProbTable]:
        """The log-probs of every held-out set under the reference of the step, from disk.

        In a run that has grown, an earlier step does without the sets that later ones have brought.

        Raises:
            ReferenceTableError: as in ``reference``.
        """
        models = [model_name(index) for index in range(len(self._plan.steps))]
        owner = step.reference if step.reference in models else EXTERNAL
        later = set(self.to_hold(owner)) if len(self.ledger.lives) > 1 else set()
        paths = {name: self._run.heldout(owner, column) for column, name in enumerate(self._plan.heldout)}
        return {name: self._read(path) for name, path in paths.items() if name not in later}

    def to_hold(self, owner: str) -> list[str]:
        """The names of the held-out sets whose log-probs under a model are still to be computed.

        Args:
            owner: "M_0" … "M_T", or EXTERNAL.
        """
        sets = enumerate(self._plan.heldout)
        return [name for column, name in sets if not self._has(self._run.heldout(owner, column))]

    def _read(self, path: Path) -> LogProbTable:
        return self._ranks.on_rank_0(lambda: read_table(self._run, self.ledger, path))

    def to_sample(self, model: str, *, referenced: StepPlan | None = None) -> list[StepPlan]:
        """The steps whose rows are still to be looked at under a model, for the report; none without diagnostics.

        Args:
            model: "M_0" … "M_T".
            referenced: a step whose reference table is there, and not recorded yet.
        """

        def is_known(step: StepPlan) -> bool:
            is_referenced = referenced is not None and step.index == referenced.index
            whole = step.reference == model and (is_referenced or self.has_table(step))
            return whole or any(map(self._has, (self._run.log_probs(model, step), self._run.sample(model, step))))

        known = [step for step in self._plan.steps if not (step.is_awaited or step.is_unranked)]
        return [step for step in known if self._plan.diagnostics and not is_known(step)]

    def has_looked_back(self, step: StepPlan) -> bool:
        """Whether nothing is left to ask the models before M_{t-1} of what came with this step when the run grew."""
        return all(life.looked_back for life in self.ledger.lives if step.name in life.steps)

    def of_external_reference(self, step: StepPlan) -> tuple[list[StepPlan], list[str]]:
        """This step and those after it that have no table under an external reference; sets likewise."""
        models = [model_name(index) for index in range(len(self._plan.steps))]
        steps = [other for other in self._without_table(step) if other.reference not in models]
        return steps, self.to_hold(EXTERNAL) if steps else []

    def to_look_back(self, step: StepPlan) -> list[LookBack]:
        """What is left to ask the models before M_{t-1}, as far as they are still there.

        Raises:
            OutputError: one of them is damaged.
        """
        return self._ranks.on_rank_0(
            lambda: [back for index in range(step.index - 1) if (back := self._back(index, step))]
        )

    def _back(self, index: int, step: StepPlan) -> LookBack | None:
        model = model_name(index)
        references = [other for other in self._without_table(step) if other.reference == model]
        # Of rows that a hook makes models are asked from the step on before which it makes them.
        asked = [other for other in self.to_sample(model) if other.index >= step.index and other not in references]
        steps = [
            other for other in asked if self._run.key(self._run.made_rows_of(other.name)) not in self.ledger.made_rows
        ]
        heldout = self.to_hold(model)
        is_there = index == 0 or self.ledger.records[index - 1].kept
        if not is_there or not (references or heldout or steps):
            return None
        return LookBack(model, model_dir(self._run, self.ledger, model), references, heldout, steps)

    def _without_table(self, step: StepPlan) -> list[StepPlan]:
        """This step and those after it that have no table yet under a reference that is not the model before them."""
        later = self._plan.steps[step.index - 1 :]
        return [
            other for other in later if other.reference != model_name(other.index - 1) and not self.has_table(other)
        ]

    def _has(self, path: Path) -> bool:
        return self._run.key(path) in self.ledger.tables


def require_rows(step: StepPlan, table: LogProbTable) -> None:
    """Refuse a table that is of other rows than D_t.

    Raises:
        ReferenceTableError: it is.
    """
    if step.rows_digest is not None:
        table.require_rows(step.num_rows, step.rows_digest)
