"""Attention scores that are all there at once, where padded rows would have them in pieces.

Flash and flex attention cap scores, or add sinks to them, a piece at a time. Packed rows have the model's own function
for that, which holds the scores of a whole text: 4 bytes for each head and pair of tokens, several times a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

SCORES_AT_ONCE = 64 * 2**20  # bytes in float32, of one text in one layer
MIB = 2**20


@dataclass
class Scores:
    """What is found out about the attention of a model.

    Attributes:
        heads: whose scores are there at once, and would not be in padded rows; 0: none.
    """

    heads: int = 0

    def too_many(self, name: str, tokens: int) -> str | None:
        """Why rows should stay padded; None where the scores of a text are few enough.

        Args:
            name: of the model.
            tokens: of the longest text.
        """
        size = 4 * self.heads * tokens**2
        if size <= SCORES_AT_ONCE:
            return None
        return (
            f"{name} caps attention scores or has sinks, and packed rows would have the scores of a whole text at "
            f"once: {size / MIB:,.1f} MiB a layer for {self.heads} heads and {tokens:,} tokens, and the most are "
            f"{SCORES_AT_ONCE / MIB:,.1f} MiB; sdpo.packed: true packs them all the same"
        )


_scores: ContextVar[Scores | None] = ContextVar("what is found out about attention", default=None)


@contextmanager
def watching_scores() -> Iterator[Scores]:
    """Within this context it is noted where an attention holds all scores in place of one that does not."""
    scores = Scores()
    token = _scores.set(scores)
    try:
        yield scores
    finally:
        _scores.reset(token)


def note_scores(heads: int) -> None:
    """An attention holds all scores of so many heads in place of one that does not."""
    scores = _scores.get()
    if scores is not None:
        scores.heads = max(scores.heads, heads)
