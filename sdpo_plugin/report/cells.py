"""The tables of a run by model and set of pairs: what the matrices of a report are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo_plugin.plan import StepPlan, model_name
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import ReadableTables
from sdpo_plugin.sampling import Sample, sample
from sdpo_plugin.tables import LogProbTable


@dataclass(frozen=True)
class Cells:
    """Models M_0 … M_T by sets of pairs; a column is of the same pairs throughout.

    Attributes:
        sets: names of the sets.
        models: M_0 … M_T.
        num_rows: rows of each set that its column is computed on; None where no table is there.
        of_rows: rows of each set; None where that is not known.
        tables: by row and column; missing where not computed.
    """

    sets: Sequence[str]
    models: Sequence[str]
    num_rows: Sequence[int | None]
    of_rows: Sequence[int | None]
    tables: Mapping[tuple[int, int], LogProbTable]

    def against_base(self) -> dict[tuple[int, int], tuple[LogProbTable, LogProbTable]]:
        """Each table after M_0 with that of M_0, where both are there."""
        tables = self.tables
        return {at: (table, tables[0, at[1]]) for at, table in tables.items() if at[0] and (0, at[1]) in tables}

    def around(self, step: int, column: int) -> tuple[LogProbTable, LogProbTable] | None:
        """The tables of a set before and after a step; None where one is missing."""
        before, after = self.tables.get((step - 1, column)), self.tables.get((step, column))
        return None if before is None or after is None else (before, after)


def references(found: ReadableTables, run: RunDir, ledger: Ledger) -> dict[int, LogProbTable]:
    """The reference table of each step that has one, by t."""
    begun = [step for step, record in ledger.steps if record.state != "planned"]
    tables = {step.index: found.read(run.reference(step), step.rows_digest) for step in begun}
    return {index: table for index, table in tables.items() if table is not None}


def training_cells(found: ReadableTables, run: RunDir, ledger: Ledger, of_steps: Mapping[int, LogProbTable]) -> Cells:
    """D_1 … D_T under every model, as far as it was computed.

    With diagnostics a column is of the rows that they drew: those of the reference table of D_t among them.

    Args:
        found: reads tables.
        run: the run directory.
        ledger: of the run.
        of_steps: the reference tables; an external reference has no row.
    """
    models, tables = _models(ledger), {}
    for column, step in enumerate(ledger.plan.steps):
        drawn = _sample(ledger, step)
        for row, model in enumerate(models):
            table = _whole(found, run, step, model, of_steps.get(step.index))
            if drawn is not None and table is not None:
                table = table.select(drawn.rows, drawn.digest)
            elif drawn is not None:
                table = found.read(run.sample(model, step), drawn.digest)
            if table is not None:
                tables[row, column] = table
    names = [step.name for step in ledger.plan.steps]
    return _cells(names, models, [step.num_rows for step in ledger.plan.steps], tables)


def heldout_cells(found: ReadableTables, run: RunDir, ledger: Ledger) -> Cells:
    """The held-out sets under every model: computed under M_{t-1} before step t, and under M_T at the end."""
    models, tables = _models(ledger), {}
    for column in range(len(ledger.plan.heldout)):
        rows_digest = None
        for row in range(len(models)):
            path = run.heldout(model_name(row), column)
            table = found.read(path, rows_digest) if _is_recorded(ledger, row) else None
            if table is not None:
                tables[row, column], rows_digest = table, table.rows_digest
    cells = _cells(ledger.plan.heldout, models, [None] * len(ledger.plan.heldout), tables)
    return Cells(cells.sets, models, cells.num_rows, cells.num_rows, tables)


def _cells(
    sets: Sequence[str],
    models: Sequence[str],
    of_rows: Sequence[int | None],
    tables: Mapping[tuple[int, int], LogProbTable],
) -> Cells:
    sizes = {column: len(table) for (_, column), table in tables.items()}
    return Cells(sets, models, [sizes.get(column) for column in range(len(sets))], of_rows, tables)


def _models(ledger: Ledger) -> list[str]:
    return [model_name(index) for index in range(len(ledger.plan.steps) + 1)]


def _sample(ledger: Ledger, step: StepPlan) -> Sample | None:
    diagnostics = ledger.plan.diagnostics
    return sample(step, **diagnostics) if diagnostics and step.rows_digest is not None else None


def _whole(
    found: ReadableTables, run: RunDir, step: StepPlan, model: str, reference: LogProbTable | None
) -> LogProbTable | None:
    """All of D_t under a model: its reference table, or one that laid out the steps."""
    if reference is not None and reference.model == model:
        return reference
    return found.read(run.log_probs(model, step), step.rows_digest)


def _is_recorded(ledger: Ledger, row: int) -> bool:
    return ledger.records[row].state != "planned" if row < len(ledger.records) else ledger.finished
