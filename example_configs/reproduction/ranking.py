"""The task of the reproduction: put four words in an order that nobody has written down.

There is one true order of the words, drawn by the seed. The base model learns from a writer with wrong beliefs: he
places each word some ranks off, always the same way, and errs a little besides. Preference rows want the true
order; the rejected answer has two neighbours of the list swapped. How far apart these two stand in the true order
makes a source easy or hard, for the base model and for the annotators, who mix up close words more often: a source's
`noise` is the share of its training rows whose labels are flipped. Held-out rows have no flips.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_WORDS = 32
LIST_LENGTH = 4
BELIEF_ERROR = 12.0  # standard deviation of the ranks by which the writer misplaces a word, once and for all
WRITING_ERROR = 8.0  # of the ranks by which he misplaces it besides, anew in each answer

TRAINING_ROWS = 480  # of each source: 15 batches of 32; the pool of 60 cuts into 2, 3, 4 or 5 steps of whole batches
HELD_OUT_ROWS = 1000  # of each source

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Where rows come from: how far apart the swapped words are, and the share of flipped labels."""

    name: str
    gaps: tuple[int, int]  # least and largest distance in the true order
    noise: float


SOURCES = (  # in the order of a config that nobody has sorted by difficulty
    Source("near", (3, 5), 0.25),
    Source("far", (12, 31), 0.05),
    Source("close", (1, 2), 0.35),
    Source("middling", (6, 11), 0.15),
)


@dataclass(frozen=True)
class Rows:
    """Rows of one source as word numbers, each array of shape (rows, LIST_LENGTH)."""

    prompts: Numbers
    chosen: Numbers
    rejected: Numbers


def flip(rows: Rows, share: float, rng: np.random.Generator) -> Rows:
    """The rows with chosen and rejected exchanged in this share of them, rounded to whole rows, drawn by `rng`."""
    flipped = np.zeros((len(rows.prompts), 1), dtype=bool)
    flipped[rng.permutation(len(flipped))[: round(share * len(flipped))]] = True
    return Rows(
        rows.prompts, np.where(flipped, rows.rejected, rows.chosen), np.where(flipped, rows.chosen, rows.rejected)
    )


def set_keys(lists: Numbers) -> Numbers:
    """A number for each list that tells its set of words, whatever their order."""
    return np.bitwise_or.reduce(np.int64(1) << lists, axis=1)


class World:
    """The true order, the writer's beliefs, and the word sets that preference rows have used up.

    No set of words is in two preference rows, nor in what the base model learns from: a held-out row asks for an order
    of words that was never seen in any order.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = self.rng.permutation(NUM_WORDS)  # by word
        self.belief = self.rank + self.rng.normal(0.0, BELIEF_ERROR, NUM_WORDS)
        self._taken: set[int] = set()

    def _lists(self, count: int) -> Numbers:
        """Lists of different words in random order, of sets that are not taken."""
        lists = np.argsort(self.rng.random((count, NUM_WORDS)), axis=1)[:, :LIST_LENGTH]
        return lists[[key not in self._taken for key in set_keys(lists).tolist()]]

    def preference_rows(self, source: Source, count: int) -> Rows:
        """Rows of one source, without flips."""
        rows: list[tuple[Numbers, Numbers, Numbers]] = []
        while len(rows) < count:
            for prompt in self._lists(4 * count):
                chosen = prompt[np.argsort(self.rank[prompt])]
                gaps = np.diff(self.rank[chosen])
                places = np.flatnonzero((gaps >= source.gaps[0]) & (gaps <= source.gaps[1]))
                key = int(set_keys(prompt[None])[0])
                if len(rows) == count or key in self._taken or not len(places):
                    continue
                self._taken.add(key)
                place = int(self.rng.choice(places))
                rejected = chosen.copy()
                rejected[[place, place + 1]] = chosen[[place + 1, place]]
                rows.append((prompt, chosen, rejected))
        return Rows(*(np.stack(column) for column in zip(*rows, strict=True)))

    def writer_answers(self, count: int) -> tuple[Numbers, Numbers]:
        """Prompts, at most `count`, and the writer's answers."""
        prompts = self._lists(count)
        seen = self.belief[prompts] + self.rng.normal(0.0, WRITING_ERROR, prompts.shape)
        return prompts, np.take_along_axis(prompts, np.argsort(seen, axis=1), axis=1)
