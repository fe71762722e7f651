"""Plan, tables, models and ledger on disk, by rank 0: data first, then the ledger that vouches for it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sdpo_plugin.drift import require_same_steps
from sdpo_plugin.files import remove_folder, write_json, written
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.places import require_own_places
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.resume import sweep
from sdpo_plugin.sealed import publish, seal
from sdpo_plugin.tables import read_table, save_table

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

    Raises:
        ConfigError: the plan has other steps than the ledger.
        OutputError: a symbolic link stands where the run would write.
    """

    def __init__(self, plan: Plan, ranks: Ranks, run: RunDir, ledger: Ledger) -> None:
        self._ranks, self._run = ranks, run
        require_same_steps([step.name for step in ledger.steps], [step.name for step in plan.steps])
        to_train = [step.name for step in ledger.steps if step.state != "exported"]
        ranks.on_rank_0(lambda: require_own_places(run, to_train))
        # The ledger of a new run is rank 0's, for its random name.
        self.ledger = ranks.on_rank_0(lambda: replace(ledger, plan_fingerprint=plan.fingerprint()))
        ranks.on_rank_0(lambda: remove_folder(run.staging))
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
