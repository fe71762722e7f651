"""The table of reference log-probs of one data set: one finite number per row and side, or no table.

Knows nothing of models. The digest ties a table to its rows, so that it cannot serve other data.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.files import write_bytes

SCHEMA_VERSION = 1
Float = NDArray[np.float32]
Int = NDArray[np.int64]
DTYPES = {"chosen": "F32", "rejected": "F32", "chosen_tokens": "I64", "rejected_tokens": "I64"}  # safetensors' words


@dataclass(frozen=True)
class ReferenceTable:
    """Summed log-probs of the completions of N preference pairs under one model.

    Attributes:
        chosen: log π(y_w|x) in nats, float32, shape (N,), in the order of the rows.
        rejected: log π(y_l|x) in nats, float32, shape (N,).
        chosen_tokens: completion tokens of y_w that were scored, shape (N,).
        rejected_tokens: the same of y_l.
        model: whose log-probs these are, "M_0" … "M_T".
        rows_digest: SHA-256 of the rows (token ids) that were scored.
    """

    chosen: Float
    rejected: Float
    chosen_tokens: Int
    rejected_tokens: Int
    model: str
    rows_digest: str

    def __len__(self) -> int:
        return len(self.chosen)

    def require_rows(self, num_rows: int, rows_digest: str) -> None:
        """Refuse to serve data that is not what was scored.

        Raises:
            ReferenceTableError: another number of rows or another digest.
        """
        if len(self) != num_rows or self.rows_digest != rows_digest:
            raise ReferenceTableError(
                f"the reference table of {self.model} has {len(self)} rows with digest {self.rows_digest[:12]}, "
                f"but the step has {num_rows} rows with digest {rows_digest[:12]}: it was made for other data."
            )

    def select(self, rows: Int, rows_digest: str) -> "ReferenceTable":
        """The table of some of the rows, in the order of ``rows``, whose digest is ``rows_digest``."""
        return ReferenceTable(
            self.chosen[rows],
            self.rejected[rows],
            self.chosen_tokens[rows],
            self.rejected_tokens[rows],
            model=self.model,
            rows_digest=rows_digest,
        )

    def save(self, path: Path) -> None:
        """Write the table as safetensors, atomically."""
        arrays = {
            "chosen": self.chosen,
            "rejected": self.rejected,
            "chosen_tokens": self.chosen_tokens,
            "rejected_tokens": self.rejected_tokens,
        }
        about = {
            "schema_version": str(SCHEMA_VERSION),
            "model": self.model,
            "rows_digest": self.rows_digest,
            "checksum": self.checksum(),
        }
        write_bytes(path, save(arrays, metadata=about))

    def checksum(self) -> str:
        """SHA-256 of the numbers and of what they belong to: safetensors itself does not notice a flipped bit."""
        digest = hashlib.sha256(f"{self.model}\n{self.rows_digest}\n".encode())
        for column in (self.chosen, self.rejected, self.chosen_tokens, self.rejected_tokens):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: Path) -> "ReferenceTable":
        """Read what ``save`` wrote.

        Raises:
            ReferenceTableError: the file is missing, torn, of another kind, or not complete.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                # Types are looked at before they are loaded: numpy has no word for some of them.
                dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
                keys = {"schema_version", "model", "rows_digest", "checksum"}
                if set(about) != keys or about["schema_version"] != str(SCHEMA_VERSION) or dtypes != DTYPES:
                    raise ReferenceTableError(f"{path} is not a reference table of schema version {SCHEMA_VERSION}")
                arrays = {name: file.get_tensor(name) for name in DTYPES}
        except ReferenceTableError:
            raise
        except (SafetensorError, OSError, ValueError) as error:
            raise ReferenceTableError(f"cannot read the reference table {path}: {error}") from error
        if len({array.shape for array in arrays.values()}) != 1 or arrays["chosen"].ndim != 1:
            raise ReferenceTableError(f"{path}: the columns of the reference table have different lengths")
        table = cls(**arrays, model=about["model"], rows_digest=about["rows_digest"])
        if table.checksum() != about["checksum"]:
            raise ReferenceTableError(f"{path}: the reference table does not fit its checksum; the file is damaged")
        _require_finite(table.chosen, table.rejected, f"{path}")
        return table


def concatenate(tables: Sequence[ReferenceTable]) -> ReferenceTable:
    """The tables of several data sets under one model as one; its digest is that of no data set."""
    assert len({table.model for table in tables}) == 1
    return ReferenceTable(
        np.concatenate([table.chosen for table in tables]),
        np.concatenate([table.rejected for table in tables]),
        np.concatenate([table.chosen_tokens for table in tables]),
        np.concatenate([table.rejected_tokens for table in tables]),
        model=tables[0].model,
        rows_digest="",
    )


class TableBuilder:
    """Collects scores row by row, in any order, and hands out a table only when every row has its two."""

    def __init__(self, num_rows: int) -> None:
        assert num_rows > 0
        self._seen = np.zeros(num_rows, dtype=bool)
        self._logps = np.full((2, num_rows), -np.inf, dtype=np.float32)
        self._tokens = np.zeros((2, num_rows), dtype=np.int64)

    def fill(self, rows: Sequence[int] | Int, logps: NDArray[np.floating], tokens: NDArray[np.integer]) -> None:
        """Take the scores of ``rows``.

        Args:
            rows: k row numbers.
            logps: summed log-probs in nats, shape (2, k): chosen, rejected.
            tokens: scored completion tokens, shape (2, k).

        Raises:
            ReferenceTableError: a row that has its scores already.
        """
        index = np.asarray(rows, dtype=np.int64)
        assert logps.shape == tokens.shape == (2, len(index))
        assert not len(index) or (index.min() >= 0 and index.max() < len(self._seen))
        twice = index[self._seen[index]].tolist() or sorted({int(r) for r in index if (index == r).sum() > 1})
        if twice:
            raise ReferenceTableError(f"rows scored twice, first 10: {twice[:10]}")
        self._seen[index] = True
        self._logps[:, index] = logps
        self._tokens[:, index] = tokens

    def finish(
        self, model: str, rows_digest: str, what: str, name_row: Callable[[int], str] | None = None
    ) -> ReferenceTable:
        """The whole table.

        Args:
            model: whose log-probs these are.
            rows_digest: digest of the rows.
            what: name of the data set, for the error.
            name_row: says which row one is, for the error; its number without it.

        Raises:
            ReferenceTableError: rows are missing, or a log-prob is not finite.
        """
        missing = np.flatnonzero(~self._seen).tolist()
        if missing:
            raise ReferenceTableError(
                f"the reference table of {what} misses {len(missing)} of {len(self._seen)} rows, "
                f"first 10: {missing[:10]}"
            )
        _require_finite(self._logps[0], self._logps[1], what, name_row)
        return ReferenceTable(
            self._logps[0], self._logps[1], self._tokens[0], self._tokens[1], model=model, rows_digest=rows_digest
        )


def _require_finite(chosen: Float, rejected: Float, what: str, name_row: Callable[[int], str] | None = None) -> None:
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        bad = np.flatnonzero(~np.isfinite(values)).tolist()
        if bad:
            first = name_row(bad[0]) if name_row else f"row {bad[0]}"
            raise ReferenceTableError(
                f"{what}: the reference log-prob of the {side} answer is not finite in {len(bad)} rows, "
                f"first: {first} with {values[bad[0]]}. The model overflows on these rows: "
                "train in bf16 or fp32 instead of fp16, or remove them."
            )
