"""The rows of a data set as numbers: a key per row, a digest of many. Pure functions on arrays of token ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Int = NDArray[np.int64]

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # the constants of splitmix64


@dataclass(frozen=True)
class RowFacts:
    """Numbers about each of N tokenized rows.

    Attributes:
        keys: 64-bit hash of prompt, chosen and rejected token ids, shape (N,).
        prompts: 64-bit hash of the prompt alone, shape (N,).
        lengths: tokens of the prompt with the longer of the two answers, shape (N,).
        tokens: tokens of the prompt with both answers, shape (N,).
        answers: tokens of both answers, shape (N,).
    """

    keys: Keys
    prompts: Keys
    lengths: Int
    tokens: Int
    answers: Int

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Int) -> "RowFacts":
        """The facts of some rows, in the order of ``rows``."""
        return RowFacts(*(getattr(self, field.name)[rows] for field in fields(self)))

    def cut(self, length: int | None) -> "RowFacts":
        """The same rows, their answers cut where a prompt with one of them has more tokens than ``length``."""
        if length is None:
            return self
        prompt = self.tokens - self.answers
        longer = self.lengths - prompt
        answers = [np.minimum(each, length - prompt) for each in (longer, self.answers - longer)]
        both = np.add(*answers)
        return RowFacts(self.keys, self.prompts, prompt + answers[0], prompt + both, both)

    def digest(self) -> str:
        """SHA-256 over the keys of all rows in order."""
        return hashlib.sha256(self.keys.astype("<u8").tobytes()).hexdigest()


def concatenate(parts: Sequence[RowFacts]) -> RowFacts:
    """The facts of several data sets, one after the other."""
    return RowFacts(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(RowFacts)))


def facts_of(columns: Sequence[tuple[Int, Int]]) -> RowFacts:
    """Facts of a batch of N rows.

    Args:
        columns: for prompt, chosen and rejected: the token ids of all rows one after the other, and the number of
            tokens of each row, shape (N,).
    """
    prompts, chosen, rejected = (sequence_keys(ids, lengths) for ids, lengths in columns)
    prompt, *answers = (lengths for _, lengths in columns)
    longer, both = np.maximum(*answers), np.add(*answers)
    return RowFacts(pair_keys(prompts, chosen, rejected), prompts, prompt + longer, prompt + both, both)


def pair_keys(prompts: Keys, chosen: Keys, rejected: Keys) -> Keys:
    """A 64-bit hash of each of N pairs, shape (N,), from those of prompt, chosen and rejected."""
    with np.errstate(over="ignore"):
        return _mix(prompts + _mix(chosen + _mix(rejected)))


def sequence_keys(ids: Int, lengths: Int) -> Keys:
    """A 64-bit hash of each of N token sequences, shape (N,): the sum of its tokens, each mixed with its position.

    Not cryptographic: it tells rows apart, it does not defend against rows made to collide.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts, lengths)
    with np.errstate(over="ignore"):
        mixed = _mix(ids.astype(np.uint64) * np.uint64(_ODD[0]) + positions.astype(np.uint64) * np.uint64(_ODD[1]))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        return _mix(sums[ends] - sums[starts] + lengths.astype(np.uint64))


def _mix(values: Keys) -> Keys:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit in reaches every bit out."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(_ODD[0])
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_ODD[1])
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_ODD[2])
        return values ^ (values >> np.uint64(31))
