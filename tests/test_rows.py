"""Keys of rows: equal for equal tokens, different for anything else, and the same everywhere."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdpo_plugin.rows import RowFacts, concatenate, facts_of, sequence_keys

Tokens = list[int]
Row = tuple[Tokens, Tokens, Tokens]

tokens = st.lists(st.integers(0, 200_000) | st.integers(0, 3), max_size=6)
row = st.tuples(tokens, tokens, tokens)


def flat(sequences: list[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([token for sequence in sequences for token in sequence], dtype=np.int64),
        np.array([len(sequence) for sequence in sequences], dtype=np.int64),
    )


def facts(rows: list[Row]) -> RowFacts:
    """The facts of rows of prompt, chosen and rejected tokens."""
    return facts_of([flat([row[column] for row in rows]) for column in range(3)])


def keys(*sequences: Tokens) -> list[int]:
    return sequence_keys(*flat(list(sequences))).tolist()


@given(st.lists(row, min_size=1, max_size=8), st.data())
def test_facts_of_a_row_do_not_depend_on_its_neighbours(rows: list[Row], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    parts = [facts(part) for part in (rows[:cut], rows[cut:]) if part]
    whole, joined = facts(rows), concatenate(parts)
    assert len(joined) == len(rows)
    for name in ("keys", "prompts", "lengths"):
        assert getattr(whole, name).tolist() == getattr(joined, name).tolist()
    assert whole.digest() == joined.digest()


@given(row, row)
def test_two_rows_have_one_key_only_if_they_are_one(one: Row, other: Row) -> None:
    assume(one != other)
    both = facts([one, other])
    assert both.keys[0] != both.keys[1]
    assert (both.prompts[0] == both.prompts[1]) == (one[0] == other[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param([1, 2], [2, 1], id="order"),
        pytest.param([1], [1, 0], id="zero-at-the-end"),
        pytest.param([0, 1], [1], id="zero-at-the-start"),
        pytest.param([], [0], id="nothing-and-zero"),
        pytest.param([5, 5, 5], [5, 5], id="repeats"),
        pytest.param([3, 4], [4, 3, 0], id="sums"),
    ],
)
def test_sequences_that_a_weak_key_would_confuse(one: Tokens, other: Tokens) -> None:
    first, second = keys(one, other)
    assert first != second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(([1], [2], [3]), ([1], [3], [2]), id="answers-swapped"),
        pytest.param(([1], [2], [3]), ([2], [1], [3]), id="prompt-and-chosen-swapped"),
        pytest.param(([1, 2], [3], [4]), ([1], [2, 3], [4]), id="token-moved-from-prompt-to-answer"),
        pytest.param(([1], [2], [2]), ([1], [3], [3]), id="equal-answers"),
    ],
)
def test_rows_of_the_same_tokens_in_other_places_differ(one: Row, other: Row) -> None:
    found = facts([one, other])
    assert found.keys[0] != found.keys[1]


def test_lengths_are_the_prompt_with_the_longer_answer() -> None:
    found = facts([([1, 2], [3], [4, 5, 6]), ([], [7, 8], [9]), ([1], [], [])])
    assert found.lengths.tolist() == [5, 2, 1]


def test_rows_are_cut_at_a_length() -> None:
    """Prompts of 3, 2 and 1 tokens with answers of 9 and 1, 2 and 5, 1 and 1; a prompt and an answer have 6 at most."""
    rows = [([1] * 3, [1] * 9, [1]), ([1] * 2, [1] * 2, [1] * 5), ([1], [1], [1])]
    whole = facts(rows)
    cut = whole.cut(6)
    assert (cut.lengths.tolist(), cut.tokens.tolist(), cut.answers.tolist()) == ([6, 6, 2], [7, 8, 3], [4, 6, 2])
    assert cut.digest() == whole.digest()
    assert whole.cut(None) is whole


def test_taken_rows_stand_in_the_order_asked_for() -> None:
    whole = facts([([1], [2], [3]), ([4], [5], [6, 7]), ([8], [9], [10])])
    some = whole.take(np.array([2, 0]))
    assert some.keys.tolist() == [whole.keys[2], whole.keys[0]]
    assert some.prompts.tolist() == [whole.prompts[2], whole.prompts[0]]
    assert some.lengths.tolist() == [2, 2]


def test_digest_knows_the_order_of_rows() -> None:
    rows: list[Row] = [([1], [2], [3]), ([4], [5], [6])]
    assert facts(rows).digest() != facts(rows[::-1]).digest()
    assert facts(rows[:1]).digest() != facts(rows).digest()


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    """Ranks, caches and a run that is resumed compare them."""
    assert facts([([1, 2], [3], [4])]).keys.tolist() == [6796980547996016479]


def splitmix64(value: int) -> int:
    """The finalizer as published, in Python's whole numbers (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@given(tokens)
def test_key_is_what_its_description_says(sequence: Tokens) -> None:
    """The sum of the tokens, each mixed with its position, mixed with their number."""
    mixed = [
        splitmix64((token * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) % 2**64)
        for position, token in enumerate(sequence)
    ]
    assert keys(sequence) == [splitmix64((sum(mixed) + len(sequence)) % 2**64)]
