"""What a tokenized pair shows of itself, as arrays over many pairs. Pure functions on token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.rows import Int, Keys, sequence_keys

Bools = NDArray[np.bool_]
Columns = Sequence[tuple[Int, Int]]
"""For prompt, chosen and rejected: token ids of all rows one after the other, and tokens of each row, shape (N,)."""


@dataclass(frozen=True)
class Marks:
    """The tokens that are no content.

    Attributes:
        bos: begins a prompt; None: the tokenizer has none.
        wants_bos: tokenizer or chat template puts BOS in front of prompts.
        eos: each of them ends an answer.
        blank: special tokens and those of white space.
        ends: what stands after an answer, each as token ids: an answer that is nothing else is empty.
    """

    bos: int | None
    wants_bos: bool
    eos: tuple[int, ...]
    blank: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class PairFacts:
    """Facts of each of N tokenized pairs; all arrays have shape (N,).

    Attributes:
        prompts, chosen, rejected: 64-bit hashes of these token ids.
        prompt_tokens, chosen_tokens, rejected_tokens: numbers of tokens.
        empty: an answer has no content.
        doubled_bos: the prompt begins with BOS twice.
        no_bos: the prompt does not begin with BOS, and should.
        no_eos: an answer does not end with EOS.
    """

    prompts: Keys
    chosen: Keys
    rejected: Keys
    prompt_tokens: Int
    chosen_tokens: Int
    rejected_tokens: Int
    empty: Bools
    doubled_bos: Bools
    no_bos: Bools
    no_eos: Bools

    def __len__(self) -> int:
        return len(self.prompts)


def concatenate(parts: Sequence[PairFacts]) -> PairFacts:
    """The facts of several batches, one after the other."""
    names = [field.name for field in fields(PairFacts)]
    return PairFacts(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def pair_facts(columns: Columns, marks: Marks) -> PairFacts:
    """The facts of a batch of N rows."""
    (prompt_ids, prompt_tokens), *answers = columns
    keys = [sequence_keys(ids, lengths) for ids, lengths in columns]
    begins = [_at(prompt_ids, prompt_tokens, place, marks.bos) for place in (0, 1)]
    return PairFacts(
        prompts=keys[0],
        chosen=keys[1],
        rejected=keys[2],
        prompt_tokens=prompt_tokens,
        chosen_tokens=answers[0][1],
        rejected_tokens=answers[1][1],
        empty=_either(*(_is_empty(*answer, key, marks) for answer, key in zip(answers, keys[1:], strict=True))),
        doubled_bos=begins[0] & begins[1],
        no_bos=~begins[0] if marks.wants_bos else np.zeros(len(prompt_tokens), dtype=bool),
        no_eos=_either(*(~_ends_with(*answer, marks.eos) for answer in answers)),
    )


def _either(first: Bools, second: Bools) -> Bools:
    return np.logical_or(first, second)


def _at(ids: Int, lengths: Int, place: int, token: int | None) -> Bools:
    """Whether the token at this place of each row is the one given."""
    found = np.zeros(len(lengths), dtype=bool)
    if token is not None:
        there = lengths > place
        found[there] = ids[(np.cumsum(lengths) - lengths)[there] + place] == token
    return found


def _ends_with(ids: Int, lengths: Int, tokens: Sequence[int]) -> Bools:
    found = np.zeros(len(lengths), dtype=bool)
    there = lengths > 0
    found[there] = np.isin(ids[np.cumsum(lengths)[there] - 1], tokens)
    return found


def _is_empty(ids: Int, lengths: Int, keys: Keys, marks: Marks) -> Bools:
    """Nothing but tokens without content, or nothing but what stands after every answer."""
    content = np.concatenate([[0], np.cumsum(~np.isin(ids, marks.blank))])
    ends = np.cumsum(lengths)
    blank = content[ends] == content[ends - lengths]
    flat = np.array([token for end in marks.ends for token in end], dtype=np.int64)
    bare = sequence_keys(flat, np.array([len(end) for end in marks.ends], dtype=np.int64))
    empty: Bools = blank | np.isin(keys, bare)
    return empty
