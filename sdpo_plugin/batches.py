"""The batches of a pass without gradients: longest rows first, and of shorter ones as many as take the same room;
and the questions of a benchmark, dealt to the ranks.

Pure functions on arrays; 10 million rows are a few arrays of numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from sdpo_plugin.rows import Int, RowFacts


@dataclass(frozen=True)
class Batches:
    """All rows of a data set, in batches.

    Attributes:
        order: row numbers, longest first, shape (N,).
        bounds: batch i is ``order[bounds[i]:bounds[i + 1]]``; shape (number of batches + 1,).
    """

    order: Int
    bounds: Int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, number: int) -> Int:
        """The row numbers of a batch; none beyond the last."""
        return self.order[slice(*self.bounds[number : number + 2])] if number < len(self) else self.order[:0]


def batches(facts: RowFacts, rows: int, *, by_tokens: bool) -> Batches:
    """Longest first, so that a batch that does not fit into memory fails at once, and little is padded.

    Args:
        facts: of N rows.
        rows: pairs in a batch of the training: what fits here also trains.
        by_tokens: rows are packed: beyond ``rows``, a batch has more pairs as long as neither its tokens nor those of
            its answers, which logits are needed for, become more than those of the first batch; else ``rows`` each.
    """
    order = np.argsort(-(facts.tokens if by_tokens else facts.lengths), kind="stable")
    if not by_tokens:
        return Batches(order, np.append(np.arange(0, len(order), rows), len(order)))
    sums = [np.concatenate([np.zeros(1, np.int64), np.cumsum(each[order])]) for each in (facts.tokens, facts.answers)]
    bounds = [0]
    while bounds[-1] < len(order):
        start = bounds[-1]
        ends = (np.searchsorted(each, each[start] + each[min(rows, len(order))], side="right") - 1 for each in sums)
        bounds.append(min(max(int(min(ends)), start + rows), len(order)))
    return Batches(order, np.array(bounds, dtype=np.int64))


def shares(contexts: Sequence[str], num_ranks: int) -> list[list[int]]:
    """The row numbers of each rank, where questions are dealt out. Those that follow each other with the same context
    stay together: what they have in common is computed once."""
    groups = [[row for row, _ in group] for _, group in groupby(enumerate(contexts), key=lambda item: item[1])]
    return [[row for group in groups[rank::num_ranks] for row in group] for rank in range(num_ranks)]
