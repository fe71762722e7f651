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
        by_tokens: beyond ``rows``, a batch has more pairs as long as neither its tokens (prompt and longer answer) nor
            the places that logits are needed for become more than those of the first batch; else ``rows`` each.
    """
    order = np.argsort(-facts.lengths, kind="stable")
    if not by_tokens:
        return Batches(order, np.append(np.arange(0, len(order), rows), len(order)))
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(facts.lengths[order])])
    answers = facts.answers[order]
    tokens, places = sums[min(rows, len(order))], rows * (1 + int(answers[:rows].max(initial=0)))
    bounds = [0]
    while bounds[-1] < len(order):
        start = bounds[-1]
        fit = int(np.searchsorted(sums, sums[start] + tokens, side="right")) - 1 - start
        widest = 1 + int(answers[start : start + fit].max(initial=0))
        bounds.append(min(start + max(rows, min(fit, places // widest)), len(order)))
    return Batches(order, np.array(bounds, dtype=np.int64))


def shares(contexts: Sequence[str], num_ranks: int) -> list[list[int]]:
    """The row numbers of each rank, where questions are dealt out. Those that follow each other with the same context
    stay together: what they have in common is computed once."""
    groups = [[row for row, _ in group] for _, group in groupby(enumerate(contexts), key=lambda item: item[1])]
    return [[row for group in groups[rank::num_ranks] for row in group] for rank in range(num_ranks)]
