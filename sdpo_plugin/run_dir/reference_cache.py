"""Tables of log-probs that outlive a run: `sdpo.reference_cache`, a directory that runs share.

A table is found by the digest of all that its numbers depend on, which stands in the place of a model's name in it: so
a file that is torn, changed, of something else or under another's name is never used, but made again. Files appear
whole, and the runs that share a directory may write at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpo_plugin import digests
from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.run_dir.table_files import load_table, save_table
from sdpo_plugin.tables import LogProbTable

VERSION = 1  # of what a key is made of


@dataclass(frozen=True)
class TableKey:
    """All that the numbers of a table depend on.

    Attributes:
        rows_digest: of the rows, by their token ids in order, and so of the chat template.
        num_rows: how many they are.
        weights: of the model: digests by file, as JSON.
        settings: everything else that the numbers may depend on, as JSON.
    """

    rows_digest: str
    num_rows: int
    weights: Mapping[str, Any]
    settings: Mapping[str, Any]

    def digest(self) -> str:
        """SHA-256 of all of it."""
        facts = {"rows": self.rows_digest, "weights": dict(self.weights), "settings": dict(self.settings)}
        return digests.of_json({"version": VERSION, "number": self.num_rows, **facts})


class ReferenceCache:
    """The tables in a directory.

    Args:
        folder: which is made when the first table is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: TableKey) -> Path:
        """The place of a table."""
        return self._folder / f"{key.digest()}.safetensors"

    def read(self, key: TableKey, model: str) -> LogProbTable | None:
        """The table of a key, as one of ``model``; None where there is none.

        Raises:
            ReferenceTableError: what stands in its place cannot be used; it says why.
        """
        path = self.path(key)
        if not path.exists():
            return None
        table = load_table(path)
        if table.model != key.digest():
            found = table.model if re.fullmatch("[0-9a-f]{64}", table.model) else repr(table.model)
            raise ReferenceTableError(f"{path} is a table of something else ({found[:12]}…)")
        table.require_rows(key.num_rows, key.rows_digest)
        return replace(table, model=model, from_cache=True)

    def write(self, key: TableKey, table: LogProbTable) -> None:
        """Keep a table that was computed.

        Raises:
            OutputError: it cannot be written.
        """
        table.require_rows(key.num_rows, key.rows_digest)
        save_table(replace(table, model=key.digest()), self.path(key))
