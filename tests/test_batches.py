"""Batches of a pass without gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.batches import batches, shares
from sdpo_plugin.rows import RowFacts


def facts(tokens: list[int], answers: list[int]) -> RowFacts:
    """Of rows whose longer answer has all tokens but one of both."""
    nothing, both = np.zeros(len(tokens), np.uint64), np.array(tokens, np.int64)
    return RowFacts(nothing, nothing, both - 1, both, np.array(answers, np.int64))


def made(tokens: list[int], answers: list[int], rows: int, *, by_tokens: bool) -> list[list[int]]:
    found = batches(facts(tokens, answers), rows, by_tokens=by_tokens)
    return [found.rows(number).tolist() for number in range(len(found))]


def test_by_number_longest_first() -> None:
    assert made([3, 9, 5, 7, 5], [1] * 5, 2, by_tokens=False) == [[1, 3], [2, 4], [0]]


def test_packed_rows_are_as_long_as_both_answers() -> None:
    """Padded, the second row is the longer one, 5 tokens against 4; packed, the first, 7 against 6."""
    nothing = np.zeros(2, np.uint64)
    rows = RowFacts(nothing, nothing, *(np.array(column, np.int64) for column in ([4, 5], [7, 6], [6, 2])))
    assert batches(rows, 1, by_tokens=False).order.tolist() == [1, 0]
    assert batches(rows, 1, by_tokens=True).order.tolist() == [0, 1]


def test_short_rows_share_the_room_of_the_longest() -> None:
    """The first batch has 10 + 8 tokens, 2 + 1 of answers; after it four rows would have 16 tokens, 4 of answers."""
    assert made([4, 10, 4, 8, 4, 4], [1, 2, 1, 1, 1, 1], 2, by_tokens=True) == [[1, 3], [0, 2, 4], [5]]


def test_tokens_bound_a_batch() -> None:
    """As before with room for answers: 18 tokens hold four rows of 4, not a fifth."""
    assert made([4, 10, 4, 8, 4, 4, 4], [1, 9, 1, 7, 1, 1, 1], 2, by_tokens=True) == [[1, 3], [0, 2, 4, 5], [6]]


def test_long_answers_make_no_batch_smaller_than_the_training_s() -> None:
    assert made([10, 10, 9, 9], [1, 1, 8, 8], 2, by_tokens=True) == [[0, 1], [2, 3]]


def test_beyond_the_last_batch_there_is_nothing() -> None:
    found = batches(facts([1], [1]), 4, by_tokens=True)
    assert len(found) == 1
    assert found.rows(1).tolist() == []


@pytest.mark.parametrize("by_tokens", [True, False])
@given(
    pairs=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=60), rows=st.integers(1, 9)
)
def test_every_row_once_and_no_batch_takes_more_room_than_it_may(
    pairs: list[tuple[int, int]], rows: int, by_tokens: bool
) -> None:
    tokens, answers = [prompt + answer for prompt, answer in pairs], [answer for _, answer in pairs]
    found = made(tokens, answers, rows, by_tokens=by_tokens)
    assert sorted(row for batch in found for row in batch) == list(range(len(pairs)))
    assert [tokens[row] for batch in found for row in batch] == sorted(tokens, reverse=True)
    for batch in found[:-1]:
        assert len(batch) >= rows
    for batch in found:
        if len(batch) > rows:
            assert by_tokens
            for room in (tokens, answers):
                assert sum(room[row] for row in batch) <= sum(room[row] for row in found[0][:rows])


@pytest.mark.parametrize(
    ("contexts", "num_ranks", "dealt"),
    [
        ("aabbbc", 1, [[0, 1, 2, 3, 4, 5]]),
        ("aabbbc", 2, [[0, 1, 5], [2, 3, 4]]),  # a and c, b
        ("aba", 2, [[0, 2], [1]]),  # the same question asked again is another one
        ("a", 3, [[0], [], []]),
        ("", 2, [[], []]),
    ],
)
def test_questions_are_dealt_with_all_their_answers(contexts: str, num_ranks: int, dealt: list[list[int]]) -> None:
    assert shares(list(contexts), num_ranks) == dealt


@given(st.lists(st.sampled_from("abc")), st.integers(1, 5))
def test_every_question_is_one_ranks(contexts: list[str], num_ranks: int) -> None:
    dealt = shares(contexts, num_ranks)
    assert len(dealt) == num_ranks
    assert sorted(row for rows in dealt for row in rows) == list(range(len(contexts)))
