"""The table of log-probs of one data set under one model: one finite number per row and side, or no table.

The digest of the rows ties a table to its data, so that it cannot serve others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin import digests
from sdpo_plugin.errors import ReferenceTableError

Float = NDArray[np.float32]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class LogProbTable:
    """Summed log-probs of the completions of N preference pairs under one model.

    Attributes:
        chosen: log π(y_w|x) in nats, float32, shape (N,), in the order of the rows.
        rejected: log π(y_l|x) in nats, float32, shape (N,).
        chosen_tokens: completion tokens of y_w, shape (N,).
        rejected_tokens: the same of y_l.
        model: whose log-probs these are, "M_0" … "M_T".
        rows_digest: SHA-256 of the rows (token ids).
        from_cache: it was not computed by this run, but read from `sdpo.reference_cache`.
    """

    chosen: Float
    rejected: Float
    chosen_tokens: Int
    rejected_tokens: Int
    model: str
    rows_digest: str
    from_cache: bool = False

    def __len__(self) -> int:
        return len(self.chosen)

    def require_rows(self, num_rows: int, rows_digest: str) -> None:
        """Refuse to serve other data.

        Raises:
            ReferenceTableError: another number of rows or another digest.
        """
        if len(self) != num_rows or self.rows_digest != rows_digest:
            raise ReferenceTableError(
                f"the reference table of {self.model} has {len(self)} rows with digest {self.rows_digest[:12]}, "
                f"but the step has {num_rows} rows with digest {rows_digest[:12]}: it was made for other data."
            )

    def select(self, rows: Int, rows_digest: str) -> "LogProbTable":
        """The table of some of the rows, in the order of ``rows``, whose digest is ``rows_digest``."""
        return LogProbTable(
            self.chosen[rows],
            self.rejected[rows],
            self.chosen_tokens[rows],
            self.rejected_tokens[rows],
            model=self.model,
            rows_digest=rows_digest,
            from_cache=self.from_cache,
        )

    def digest(self) -> str:
        """SHA-256 of the numbers and of what they belong to: safetensors itself does not notice a flipped bit."""
        columns = (self.chosen, self.rejected, self.chosen_tokens, self.rejected_tokens)
        return digests.of_arrays(columns, f"{self.model}\n{self.rows_digest}\n")

    def require_finite(self, what: str, name_row: Callable[[int], str] | None = None) -> None:
        """Refuse log-probs that are no numbers.

        Args:
            what: name of the data set or file, for the error.
            name_row: says which row one is, for the error; its number without it.

        Raises:
            ReferenceTableError: a log-prob is not finite.
        """
        for side, values in (("chosen", self.chosen), ("rejected", self.rejected)):
            bad = np.flatnonzero(~np.isfinite(values)).tolist()
            if bad:
                first = name_row(bad[0]) if name_row else f"row {bad[0]}"
                raise ReferenceTableError(
                    f"{what}: the reference log-prob of the {side} answer is not finite in {len(bad)} rows, "
                    f"first: {first} with {values[bad[0]]}. The model overflows on these rows: "
                    "train in bf16 or fp32 instead of fp16, or remove them."
                )


def concatenate(tables: Sequence[LogProbTable]) -> LogProbTable:
    """The tables of several data sets under one model as one; its digest is that of no data set."""
    assert len({table.model for table in tables}) == 1
    return LogProbTable(
        np.concatenate([table.chosen for table in tables]),
        np.concatenate([table.rejected for table in tables]),
        np.concatenate([table.chosen_tokens for table in tables]),
        np.concatenate([table.rejected_tokens for table in tables]),
        model=tables[0].model,
        rows_digest="",
    )


class TableBuilder:
    """Collects log-probs row by row, in any order, and makes a table only when every row has its two."""

    def __init__(self, num_rows: int) -> None:
        assert num_rows > 0
        self._seen = np.zeros(num_rows, dtype=bool)
        self._log_probs = np.full((2, num_rows), -np.inf, dtype=np.float32)
        self._tokens = np.zeros((2, num_rows), dtype=np.int64)

    def fill(self, rows: Sequence[int] | Int, log_probs: NDArray[np.floating], tokens: NDArray[np.integer]) -> None:
        """Take the log-probs of ``rows``.

        Args:
            rows: k row numbers.
            log_probs: summed log-probs in nats, shape (2, k): chosen, rejected.
            tokens: completion tokens, shape (2, k).

        Raises:
            ReferenceTableError: a row has its log-probs already.
        """
        index = np.asarray(rows, dtype=np.int64)
        assert log_probs.shape == tokens.shape == (2, len(index))
        assert not len(index) or (index.min() >= 0 and index.max() < len(self._seen))
        found, counts = np.unique(index, return_counts=True)
        twice = index[self._seen[index]].tolist() or found[counts > 1].tolist()
        if twice:
            raise ReferenceTableError(f"rows computed twice, first 10: {twice[:10]}")
        self._seen[index] = True
        self._log_probs[:, index] = log_probs
        self._tokens[:, index] = tokens

    def finish(
        self, model: str, rows_digest: str, what: str, name_row: Callable[[int], str] | None = None
    ) -> LogProbTable:
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
        (chosen, rejected), (chosen_tokens, rejected_tokens) = self._log_probs, self._tokens
        table = LogProbTable(chosen, rejected, chosen_tokens, rejected_tokens, model=model, rows_digest=rows_digest)
        table.require_finite(what, name_row)
        return table
