"""Tables of log-probs as files: read back whole, as the ledger vouches for them, or not at all."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.run_dir.files import explaining_write_errors, write_bytes
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.tables import LogProbTable

SCHEMA_VERSION = 2
DTYPES = {"chosen": "F32", "rejected": "F32", "chosen_tokens": "I64", "rejected_tokens": "I64"}  # safetensors' words
ABOUT = {"schema_version", "model", "rows_digest", "digest"}


def save_table(table: LogProbTable, path: Path) -> None:
    """Write a table as safetensors, atomically.

    Raises:
        OutputError: it could not be written.
    """
    about = {
        "schema_version": str(SCHEMA_VERSION),
        "model": table.model,
        "rows_digest": table.rows_digest,
        "digest": table.digest(),
    }
    with explaining_write_errors(path):
        write_bytes(path, save({name: getattr(table, name) for name in DTYPES}, metadata=about))


def load_table(path: Path) -> LogProbTable:
    """Read what ``save_table`` wrote.

    Raises:
        ReferenceTableError: the file is missing, torn, of another kind, or not complete.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            # Types are looked at before they are loaded: numpy has no word for some of them.
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
            if set(about) != ABOUT or about["schema_version"] != str(SCHEMA_VERSION) or dtypes != DTYPES:
                raise ReferenceTableError(f"{path} is not a reference table of schema version {SCHEMA_VERSION}")
            arrays = {name: file.get_tensor(name) for name in DTYPES}
    except ReferenceTableError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ReferenceTableError(f"cannot read the reference table {path}: {error}") from error
    if len({array.shape for array in arrays.values()}) != 1 or arrays["chosen"].ndim != 1:
        raise ReferenceTableError(f"{path}: the columns of the reference table have different lengths")
    table = LogProbTable(**arrays, model=about["model"], rows_digest=about["rows_digest"])
    if table.digest() != about["digest"]:
        raise ReferenceTableError(f"{path}: the reference table does not fit its digest; the file is damaged")
    table.require_finite(f"{path}")
    return table


def read_table(run: RunDir, ledger: Ledger, path: Path) -> LogProbTable:
    """A table that a run needs, as the ledger vouches for it.

    Raises:
        ReferenceTableError: it is missing, damaged or another one; the message says what helps.
    """
    try:
        return vouched_table(run, ledger, path)
    except ReferenceTableError as error:
        raise ReferenceTableError(f"{error}. {_remedy(run, path)}") from error


def vouched_table(run: RunDir, ledger: Ledger, path: Path) -> LogProbTable:
    """A table as the ledger vouches for it, or an error that says only what is wrong.

    Raises:
        ReferenceTableError: as in ``read_table``.
    """
    table = load_table(path)
    if table.digest() != ledger.tables.get(run.key(path)):
        raise ReferenceTableError(f"{path} is a table of another run than the ledger vouches for")
    return table


class ReadableTables:
    """The tables of a run as far as they can be read, for its report.

    Attributes:
        missed: a line on each table that the ledger vouches for and that cannot be read.
    """

    def __init__(self, run: RunDir, ledger: Ledger) -> None:
        self.missed: list[str] = []
        self._run, self._ledger = run, ledger

    def read(self, path: Path, rows_digest: str | None) -> LogProbTable | None:
        """A table; None where the run has none, or it is missing, damaged or of other rows than these."""
        if self._run.key(path) not in self._ledger.tables:
            return None
        try:
            table = vouched_table(self._run, self._ledger, path)
            if rows_digest not in (None, table.rows_digest) or not len(table):
                raise ReferenceTableError(f"{path} is of other rows")
        except ReferenceTableError as error:
            self.missed.append(f"{self._run.key(path)} cannot be used, so its numbers are missing here: {error}")
            return None
        return table


def _remedy(run: RunDir, path: Path) -> str:
    if path.parent == run.pool(1).parent:
        return (
            "The steps cannot be laid out without it, and the base model is not asked again once a run has begun: "
            "restore it, or train into another output_dir."
        )
    return (
        "A step is not trained against it: restore it, or, with reference: previous, delete the step's "
        "table in sdpo/reference, and M_{t-1} computes it again; else train into another output_dir."
    )
