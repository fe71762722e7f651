"""The order of the rows of a step, and tables of those that are still to come. Pure functions on arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.tables import LogProbTable

Int = NDArray[np.int64]


def rows_by_update(batches: Sequence[Sequence[Sequence[int]]], accumulation: int) -> list[Int]:
    """The rows that each update of an epoch reads on all ranks.

    Args:
        batches: row numbers of each batch, in order, of each rank.
        accumulation: batches of a rank in an update; the last one of an epoch may have fewer.
    """
    longest = max(map(len, batches))
    groups = [
        [row for own in batches for batch in own[first : first + accumulation] for row in batch]
        for first in range(0, longest, accumulation)
    ]
    return [np.array(group, dtype=np.int64) for group in groups]


@dataclass(frozen=True)
class Order:
    """The order of the rows of a step.

    Attributes:
        num_rows: of D_t.
        epochs: rows of each update, of each epoch; None where chance draws them only when an epoch begins.
    """

    num_rows: int
    epochs: Sequence[Sequence[Int]] | None

    def rows(self, first: int, end: int) -> Int:
        """The rows that updates ``first`` to ``end`` - 1 of the step read (counted from 0), each once, ascending."""
        if self.epochs is None:
            return np.arange(self.num_rows)
        length = len(self.epochs[0])
        return np.unique(np.concatenate([self.epochs[k // length][k % length] for k in range(first, end)]))


def spread(part: LogProbTable, rows: Int, num_rows: int) -> LogProbTable:
    """The table of ``num_rows`` rows that has the numbers of ``part`` where they belong, and no number elsewhere.

    Args:
        part: of some rows.
        rows: their numbers.
        num_rows: of all.
    """
    log_probs = np.full((2, num_rows), np.nan, dtype=np.float32)  # a loss with one of them stops the run
    tokens = np.zeros((2, num_rows), dtype=np.int64)
    log_probs[:, rows] = part.chosen, part.rejected
    tokens[:, rows] = part.chosen_tokens, part.rejected_tokens
    (chosen, rejected), (chosen_tokens, rejected_tokens) = log_probs, tokens
    return LogProbTable(
        chosen, rejected, chosen_tokens, rejected_tokens, model=part.model, rows_digest=part.rows_digest
    )
