"""Rows that M_{t-1} has picked out of what was left of the pool: kept with the run, so that nothing is ranked twice."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sdpo_plugin import digests
from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.files import explaining_write_errors, write_bytes
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir


def save_picked(path: Path, rows: NDArray[np.int64]) -> str:
    """Write the numbers of the rows, atomically; return the digest of the file.

    Raises:
        OutputError: they cannot be written.
    """
    with explaining_write_errors(path):
        write_bytes(path, save({"rows": rows}))
        return digests.of_file(path)


def read_picked(run: RunDir, ledger: Ledger | None) -> list[NDArray[np.int64]]:
    """The rows of each step that has picked them, in order, as the ledger vouches for them; None: a new run has none.

    Raises:
        OutputError: a file is missing, or has been changed.
    """
    if ledger is None:
        return []
    paths = [run.picked_rows(step) for step in ledger.plan.steps]
    return [_read(path, ledger.picked[run.key(path)]) for path in paths if run.key(path) in ledger.picked]


def _read(path: Path, digest: str) -> NDArray[np.int64]:
    try:
        content = path.read_bytes()
        if digests.of_chunks([content]) != digest:
            raise ValueError("it has been changed, its digest does not fit the ledger")
        return np.asarray(load(content)["rows"], dtype=np.int64)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise OutputError(
            f"{path} does not hold the rows that the model before this step has picked: {error}. Restore it, or train "
            "into another output_dir."
        ) from error
