"""Plan, tables, models and ledger on disk, by rank 0: data first, then the ledger that vouches for it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.files import write_json, written
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.resume import sweep
from sdpo_plugin.sealed import publish, seal

T = TypeVar("T")


class Ranks(Protocol):
    """What writing asks of the ranks."""

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0; its result, or the error that it raised, is every rank's."""


class Log:
    """The ledger of a run, in memory on every rank and on disk.

    Args:
        plan: as it stands now; its fingerprint goes into the ledger.
        ranks: of this run.
        run: where everything goes.
        ledger: so far.
    """

    def __init__(self, plan: Plan, ranks: Ranks, run: RunDir, ledger: Ledger) -> None:
        self._ranks, self._run = ranks, run
        # The ledger of a new run is rank 0's, for its random name.
        self.ledger = ranks.on_rank_0(lambda: replace(ledger, plan_fingerprint=plan.fingerprint()))
        ranks.on_rank_0(lambda: shutil.rmtree(run.staging, ignore_errors=True))
        ranks.on_rank_0(lambda: sweep(run, self.ledger))
        ranks.on_rank_0(lambda: _write(run.plan, lambda: write_json(run.plan, plan.to_json())))
        self._write()

    def has(self, path: Path) -> bool:
        """Whether the ledger vouches for this table."""
        return self._run.key(path) in self.ledger.tables

    def save(self, files: Mapping[Path, ReferenceTable]) -> None:
        """Write tables. The ledger vouches for them from the next record on."""

        def write() -> None:
            for path, table in files.items():
                save_table(table, path)

        self._ranks.on_rank_0(write)
        checksums = {self._run.key(path): table.checksum() for path, table in files.items()}
        self.ledger = replace(self.ledger, tables=self.ledger.tables | checksums)

    def read(self, path: Path) -> ReferenceTable:
        """A table that the ledger vouches for, from disk.

        Raises:
            ReferenceTableError: it is missing, damaged or another one; nothing is trained with it.
        """
        return self._ranks.on_rank_0(lambda: read_table(self._run, self.ledger, path))

    def publish(self, model: str, target: Path) -> None:
        """Seal what stands in the staging directory and give it its place."""

        def move() -> str:
            with written(target):
                digest = seal(self._run.staging, {"run": self.ledger.run, "model": model})
                publish(self._run.staging, target)
            return digest

        digest = self._ranks.on_rank_0(move)
        self.ledger = replace(self.ledger, exports={**self.ledger.exports, model: digest})

    def drop_superseded(self) -> None:
        """Remove every M_t but the last one, which alone a resumed run needs: from the ledger, then from the disk."""
        exported = [step for step in self.ledger.steps if step.state == "exported"]
        for step in exported[:-1]:
            self.ledger = self.ledger.record(step.index, kept=False)
        self._write()
        self._ranks.on_rank_0(lambda: sweep(self._run, self.ledger))

    def record(self, step: StepPlan, **facts: Any) -> None:
        """Write what a step has done."""
        self.ledger = self.ledger.record(step.index, **facts)
        self._write()

    def set(self, **facts: Any) -> None:
        """Write what the run has done."""
        self.ledger = replace(self.ledger, **facts)
        self._write()

    def _write(self) -> None:
        path = self._run.ledger
        self._ranks.on_rank_0(lambda: _write(path, lambda: self.ledger.save(path)))


def _write(path: Path, action: Callable[[], None]) -> None:
    with written(path):
        action()


def save_table(table: ReferenceTable, path: Path) -> None:
    """Write a table.

    Raises:
        OutputError: it could not be written.
    """
    with written(path):
        table.save(path)


def read_table(run: RunDir, ledger: Ledger, path: Path) -> ReferenceTable:
    """Load a table and compare it with what the ledger says of it.

    Raises:
        ReferenceTableError: it is missing, damaged or another one.
    """
    try:
        table = ReferenceTable.load(path)
        if table.checksum() != ledger.tables[run.key(path)]:
            raise ReferenceTableError(f"{path} is a table of another run than the ledger vouches for")
    except ReferenceTableError as error:
        raise ReferenceTableError(
            f"{error}. A step is not trained against it: restore it, or, with reference: previous, delete the step's "
            "table in sdpo/reference, and M_{t-1} scores the step again; else train into another output_dir."
        ) from error
    return table
