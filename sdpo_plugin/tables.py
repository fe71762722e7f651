"""Tables on disk: what is needed is read or ends the run, what is only told of is read or left out."""

from pathlib import Path

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.files import written
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.reference import ReferenceTable


class Findings:
    """The tables of a run as far as they can be read, for its report.

    Attributes:
        missed: a line on each table that the ledger vouches for and that cannot be read.
    """

    def __init__(self, run: RunDir, ledger: Ledger) -> None:
        self.missed: list[str] = []
        self._run, self._ledger = run, ledger

    def read(self, path: Path, rows_digest: str | None) -> ReferenceTable | None:
        """A table; None where the run has none, or it is missing, damaged or of other rows than these."""
        if self._run.key(path) not in self._ledger.tables:
            return None
        try:
            table = _vouched(self._run, self._ledger, path)
            if rows_digest not in (None, table.rows_digest) or not len(table):
                raise ReferenceTableError(f"{path} is of other rows")
        except ReferenceTableError as error:
            self.missed.append(f"{self._run.key(path)} cannot be used, so its numbers are missing here: {error}")
            return None
        return table


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
        ReferenceTableError: it is missing, damaged or another one; the message says what helps.
    """
    try:
        return _vouched(run, ledger, path)
    except ReferenceTableError as error:
        raise ReferenceTableError(f"{error}. {_remedy(run, path)}") from error


def _vouched(run: RunDir, ledger: Ledger, path: Path) -> ReferenceTable:
    """The same, and the error says only what is wrong.

    Raises:
        ReferenceTableError: as in ``read_table``.
    """
    table = ReferenceTable.load(path)
    if table.checksum() != ledger.tables.get(run.key(path)):
        raise ReferenceTableError(f"{path} is a table of another run than the ledger vouches for")
    return table


def _remedy(run: RunDir, path: Path) -> str:
    if path.parent == run.pool(1).parent:
        return (
            "The steps cannot be laid out without it, and the base model is not asked again once a run has begun: "
            "restore it, or train into another output_dir."
        )
    return (
        "A step is not trained against it: restore it, or, with reference: previous, delete the step's "
        "table in sdpo/reference, and M_{t-1} scores the step again; else train into another output_dir."
    )
