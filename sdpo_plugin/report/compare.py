"""Runs side by side: their last models on the held-out sets that they share, with differences to the first run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_plugin import estimates, measures
from sdpo_plugin.estimates import Interval
from sdpo_plugin.report.build import require_run
from sdpo_plugin.report.cells import Cells, heldout_cells
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import ReadableTables
from sdpo_plugin.tables import LogProbTable
from sdpo_plugin.text import duration, text_table

SECONDS = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds")
LEGEND = (
    "acc: share of held-out pairs with γ > 0. implicit: share with γ above that of the run's own M_0. Differences are "
    "to the first run, pair by pair, with their 95 % interval; –: not computed, or other rows than the first run's."
)


@dataclass(frozen=True)
class Compared:
    """A run, as far as it is compared.

    Attributes:
        name: its directory.
        ledger: of it.
        cells: its held-out sets under its models.
        missed: a line on each table that cannot be read.
    """

    name: str
    ledger: Ledger
    cells: Cells
    missed: Sequence[str]

    def last(self, name: str) -> tuple[int, LogProbTable] | None:
        """The last model that was computed on a held-out set, and its table; None where none was."""
        if name not in self.cells.sets:
            return None
        column = list(self.cells.sets).index(name)
        rows = [row for row, at in self.cells.tables if at == column]
        return (max(rows), self.cells.tables[max(rows), column]) if rows else None

    def base(self, name: str) -> LogProbTable | None:
        """The table of M_0 on a held-out set that ``last`` has one of."""
        return self.cells.tables.get((0, list(self.cells.sets).index(name)))


def compare(directories: Sequence[Path]) -> str:
    """The text of a comparison.

    Args:
        directories: output directories of two runs or more, also of such that are not finished.

    Raises:
        OutputError: one of them holds no run, or its ledger is damaged.
    """
    names = _names(directories)
    runs = [_read(RunDir(directory), name) for directory, name in zip(directories, names, strict=True)]
    sets = dict.fromkeys(name for run in runs for name in run.cells.sets)
    parts = [text_table([*_runs(runs)]), *(text_table([*_models(runs, name)]) for name in sets)]
    parts += [LEGEND] if sets else ["These runs hold nothing out: set val_set_size or test_datasets to compare them."]
    parts += [f"{run.name}: {line}" for run in runs for line in run.missed]
    return "\n\n".join(parts)


def _read(run: RunDir, name: str) -> Compared:
    require_run(run)
    ledger = Ledger.load(run.ledger)
    found = ReadableTables(run, ledger)
    return Compared(name, ledger, heldout_cells(found, run, ledger), found.missed)


def _names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path where that tells them apart, else the whole of it."""
    short = [directory.resolve().name for directory in directories]
    return short if len(set(short)) == len(short) else [str(directory) for directory in directories]


def _runs(runs: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    yield "run", "steps done", "partition", "reference", "starts from", "updates", "took", "M_0"
    for run in runs:
        plan, records = run.ledger.plan, run.ledger.records
        done = [record for record in records if record.state == "exported"]
        seconds = sum(getattr(record, key) or 0.0 for record in records for key in SECONDS)
        last = plan.steps[-1]
        yield (
            run.name,
            f"{len(done)} of {len(records)}",
            " ".join(str(value) for key, value in plan.partition.items() if key in ("strategy", "unit")) or "–",
            last.reference,
            last.policy_init,
            f"{sum(record.num_optimizer_steps or 0 for record in records):,}",
            duration(seconds),
            plan.base_model,
        )


def _models(runs: Sequence[Compared], name: str) -> Iterator[tuple[str, ...]]:
    """One held-out set: the last model of each run on it."""
    yield f"held-out {name}", "model", "pairs", "acc", "95 %", "difference", "implicit", "mean γ", "difference of γ"
    first = runs[0].last(name)
    for run in runs:
        found = run.last(name)
        if found is None:
            yield run.name, *("–",) * 8
            continue
        row, table = found
        right = estimates.wilson(int((measures.gamma(table) > 0).sum()), len(table))
        base = run.base(name)
        implicit = "–" if base is None or not row else f"{measures.implicit_reward_accuracy(table, base):.3f}"
        accuracy, gamma = _differences(None if first is None or run is runs[0] else first[1], table)
        mean = f"{measures.gamma_stats(table).mean:+.2f}"
        interval = f"{right.low:.3f} to {right.high:.3f}"
        yield run.name, f"M_{row}", f"{len(table):,}", f"{right.value:.3f}", interval, accuracy, implicit, mean, gamma


def _differences(first: LogProbTable | None, table: LogProbTable) -> tuple[str, str]:
    """Of accuracy and of mean γ, pair by pair."""
    if first is None or first.rows_digest != table.rows_digest:
        return "–", "–"
    change = measures.change(first, table)
    return ("–", "–") if change is None else (_shown(change.accuracy, 3), _shown(change.gamma, 2))


def _shown(interval: Interval, digits: int) -> str:
    value, low, high = (f"{number:+.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"
