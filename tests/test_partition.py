"""From a pool of rows to the rows of each step: nothing lost or twice, sizes as asked for, everywhere the same."""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.partition import (
    Partition,
    easy_to_hard_rows,
    easy_to_hard_sources,
    natural,
    random,
    rows_also_in,
    rows_in_none,
    rows_kept,
    step_sizes,
    stratified,
)
from tests.conftest import RunPython

PAPER = [0.1667, 0.8333]


def counts(parts: Partition, sizes: Sequence[int]) -> np.ndarray:
    """Rows of each step from each source, shape (steps, sources)."""
    ends = np.cumsum(sizes)
    return np.array([np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(sizes)) for rows in parts])


def lengths(parts: Partition) -> list[int]:
    return [len(rows) for rows in parts]


def require_whole(parts: Partition, num_rows: int) -> None:
    """Every row of the pool is in exactly one step, and no step is empty."""
    assert np.sort(np.concatenate(parts)).tolist() == list(range(num_rows))
    assert min(lengths(parts)) >= 1
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in parts)


# Shares from equal to a millionth beside nearly all, as `PartitionArgs.shares` hands them over: summing to 1.
weights = st.lists(st.sampled_from([1, 1, 2, 3, 7, 10, 1000, 10**6]), min_size=1, max_size=12)
seeds = st.integers(0, 2**32)
source_sizes = st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 50, 101, 300]), min_size=1, max_size=15)


def shares_of(parts: Sequence[int]) -> list[float]:
    return [part / sum(parts) for part in parts]


def sizes_or_refusal(num_rows: int, shares: list[float]) -> list[int]:
    """The sizes; an example in which a step would be empty is dropped."""
    try:
        return step_sizes(num_rows, shares)
    except ConfigError:
        assume(False)
        raise


# --- sizes ---


@given(num_rows=st.integers(1, 10**7), parts=weights)
def test_sizes_sum_to_the_rows_and_are_each_within_one_of_their_share(num_rows: int, parts: list[int]) -> None:
    sizes = sizes_or_refusal(num_rows, shares_of(parts))
    assert sum(sizes) == num_rows
    assert all(abs(size - Fraction(part * num_rows, sum(parts))) < 1 for size, part in zip(sizes, parts, strict=True))


@given(num_rows=st.integers(1, 200), parts=weights)
def test_sizes_are_refused_exactly_where_a_step_would_be_empty(num_rows: int, parts: list[int]) -> None:
    try:
        sizes = step_sizes(num_rows, shares_of(parts))
    except ConfigError as error:
        seen = re.search(rf"a pool of {num_rows} rows cut into {len(parts)} steps gives sizes (\[.*\]),", str(error))
        assert seen
        assert "0" in seen[1].strip("[]").split(", ")
    else:
        assert min(sizes) >= 1


@pytest.mark.parametrize(
    ("num_rows", "fractions", "sizes"),
    [
        # 72,000 · 0.1667 = 12,002.4 and 72,000 · 0.8333 = 59,997.6: the larger remainder gets the row left over
        pytest.param(72_000, PAPER, [12_002, 59_998], id="paper"),
        pytest.param(10, [1 / 3, 1 / 3, 1 / 3], [4, 3, 3], id="equal-remainders-go-to-the-earlier-step"),
        pytest.param(11, [1 / 3, 1 / 3, 1 / 3], [4, 4, 3], id="two-rows-left-over"),
        pytest.param(9, [1 / 3, 1 / 3, 1 / 3], [3, 3, 3], id="nothing-left-over"),
        pytest.param(7, [0.5, 0.5], [4, 3], id="half-a-row"),
        pytest.param(10, [0.5, 0.26, 0.24], [5, 3, 2], id="larger-remainder"),  # 5, 2.6, 2.4
        pytest.param(
            100, [0.07, 0.93], [7, 93], id="float-just-above-a-whole-number"
        ),  # 0.07 · 100 = 7.000000000000001
        pytest.param(
            100, [0.29, 0.71], [29, 71], id="float-just-below-a-whole-number"
        ),  # 0.29 · 100 = 28.999999999999996
        pytest.param(3, [1 / 3, 1 / 3, 1 / 3], [1, 1, 1], id="as-many-steps-as-rows"),
        pytest.param(5, [1.0], [5], id="one-step"),
        pytest.param(1_000_000, [1e-6, 1 - 1e-6], [1, 999_999], id="one-in-a-million"),
    ],
)
def test_sizes_by_hand(num_rows: int, fractions: list[float], sizes: list[int]) -> None:
    assert step_sizes(num_rows, fractions) == sizes


def test_sizes_are_plain_integers() -> None:
    assert {type(size) for size in step_sizes(10, [0.3, 0.7])} == {int}


EMPTY_STEPS = pytest.mark.parametrize(
    ("num_rows", "fractions", "sizes"),
    [
        pytest.param(2, [1 / 3, 1 / 3, 1 / 3], "[1, 1, 0]", id="more-steps-than-rows"),
        pytest.param(100, [0.004, 0.996], "[0, 100]", id="share-of-less-than-half-a-row"),
        pytest.param(1, [0.5, 0.5], "[1, 0]", id="one-row"),
    ],
)


def refusal_of_empty_step(num_rows: int, num_steps: int, sizes: str) -> str:
    return re.escape(
        f"sdpo.partition: a pool of {num_rows} rows cut into {num_steps} steps gives sizes {sizes}, "
        "and a step needs at least one row; use fewer steps, larger fractions or more data."
    )


@EMPTY_STEPS
def test_step_without_a_row_is_refused_with_the_values(num_rows: int, fractions: list[float], sizes: str) -> None:
    with pytest.raises(ConfigError, match=f"^{refusal_of_empty_step(num_rows, len(fractions), sizes)}$"):
        step_sizes(num_rows, fractions)


@EMPTY_STEPS
def test_no_strategy_makes_a_step_without_a_row(num_rows: int, fractions: list[float], sizes: str) -> None:
    message = refusal_of_empty_step(num_rows, len(fractions), sizes)
    with pytest.raises(ConfigError, match=message):
        random(num_rows, fractions, seed=0)
    with pytest.raises(ConfigError, match=message):
        stratified([1] * num_rows, fractions, seed=0)
    with pytest.raises(ConfigError, match=message):
        easy_to_hard_rows(np.zeros(num_rows), fractions)


# --- every row in exactly one step ---


@given(source_sizes)
def test_natural_makes_each_source_a_step(sizes: list[int]) -> None:
    parts = natural(sizes)
    require_whole(parts, sum(sizes))
    assert counts(parts, sizes).tolist() == np.diag(sizes).tolist()


@given(num_rows=st.integers(1, 2000), parts=weights, seed=seeds)
def test_random_is_whole_and_has_the_sizes(num_rows: int, parts: list[int], seed: int) -> None:
    sizes = sizes_or_refusal(num_rows, shares_of(parts))
    found = random(num_rows, shares_of(parts), seed)
    require_whole(found, num_rows)
    assert lengths(found) == sizes


@given(sizes=source_sizes, parts=weights, seed=seeds)
def test_stratified_is_whole_and_has_the_sizes(sizes: list[int], parts: list[int], seed: int) -> None:
    wanted = sizes_or_refusal(sum(sizes), shares_of(parts))
    found = stratified(sizes, shares_of(parts), seed)
    require_whole(found, sum(sizes))
    assert lengths(found) == wanted


@given(data=st.data(), sizes=source_sizes)
def test_easy_to_hard_by_source_is_whole(data: st.DataObject, sizes: list[int]) -> None:
    accuracies = data.draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes)))
    order, parts = easy_to_hard_sources(sizes, accuracies)
    require_whole(parts, sum(sizes))
    assert sorted(order) == list(range(len(sizes)))
    assert lengths(parts) == [sizes[source] for source in order]


# few values, so that many tie; -0.0 and 0.0 tie too
gammas = st.lists(st.sampled_from([-1e30, -2.5, -1.0, -0.0, 0.0, 0.1, 1.0, 3.5, 1e30]), min_size=1, max_size=60)


@given(values=gammas, parts=weights)
def test_easy_to_hard_by_row_is_whole_and_has_the_sizes(values: list[float], parts: list[int]) -> None:
    sizes = sizes_or_refusal(len(values), shares_of(parts))
    found = easy_to_hard_rows(np.array(values), shares_of(parts))
    require_whole(found, len(values))
    assert lengths(found) == sizes


# --- stratified: the same share of every source ---


@given(sizes=source_sizes, parts=weights, seed=seeds)
def test_stratified_share_of_every_source_is_within_two_rows(sizes: list[int], parts: list[int], seed: int) -> None:
    """Within 2 rows of source size · step size / pool, so within 3 of source size · fraction.

    It rests on the first assertion: of the pool so far, source by source, a step holds its share within one row.
    """
    wanted = sizes_or_refusal(sum(sizes), shares_of(parts))
    found = counts(stratified(sizes, shares_of(parts), seed), sizes)
    so_far = np.outer(wanted, np.cumsum(sizes)) / sum(sizes)
    assert np.abs(np.cumsum(found, axis=1) - so_far).max() < 1
    assert np.abs(found - np.outer(wanted, sizes) / sum(sizes)).max() < 2
    assert np.abs(found - np.outer(shares_of(parts), sizes)).max() < 3


def test_stratified_keeps_a_large_step_s_share_beside_many_steps_of_one_row() -> None:
    """300 steps of one row beside one of 3,200: rounding each of 7 sources alone gives the small ones rows in turn of
    which the large one is short, 38 in one source."""
    sizes = [500] * 7
    parts = stratified(sizes, shares_of([1] * 300 + [3200]), seed=0)
    assert lengths(parts) == [1] * 300 + [3200]
    assert np.abs(counts(parts, sizes)[-1] - 3200 / 7).max() < 1


@pytest.mark.parametrize(
    ("sizes", "fractions", "found"),
    [
        pytest.param([10, 20], [0.5, 0.5], [[5, 10], [5, 10]], id="even"),
        # of 3 and 3 rows, halves: 1.5 each; the earlier step gets the first odd row, the later one the second
        pytest.param([3, 3], [0.5, 0.5], [[2, 1], [1, 2]], id="odd-rows-alternate"),
        pytest.param([1, 1, 1, 1], [0.5, 0.5], [[1, 0, 1, 0], [0, 1, 0, 1]], id="one-row-sources-alternate"),
        # sizes 2, 2, 1, 1; the third step has its row before it is due, when the first two want their second
        pytest.param(
            [1] * 6,
            [0.25] * 4,
            [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
            id="one-row-ahead",
        ),
        # 0.25 of 4 and of 8
        pytest.param([4, 8], [0.25, 0.75], [[1, 2], [3, 6]], id="quarters"),
        # the paper's split of OpenOrca (12,000) and Ultrafeedback Cleaned (60,000), sizes 12,002 and 59,998:
        # of the first 12,000 · 12,002/72,000 = 2,000.33 rows, rounded down as the larger step is due sooner
        pytest.param([12_000, 60_000], PAPER, [[2_000, 10_002], [10_000, 49_998]], id="paper"),
        pytest.param([7], [0.5, 0.5], [[4], [3]], id="one-source"),
        pytest.param([2, 3], [1.0], [[2, 3]], id="one-step"),
    ],
)
def test_stratified_by_hand(sizes: list[int], fractions: list[float], found: list[list[int]]) -> None:
    assert counts(stratified(sizes, fractions, seed=42), sizes).tolist() == found


# --- the same split everywhere ---

SOURCES, SHARES = [40, 1, 59], [0.3, 0.3, 0.4]


def draw(strategy: str, seed: int) -> list[list[int]]:
    parts = random(100, SHARES, seed) if strategy == "random" else stratified(SOURCES, SHARES, seed)
    return [rows.tolist() for rows in parts]


@pytest.mark.parametrize("strategy", ["random", "stratified"])
def test_same_seed_gives_the_same_split(strategy: str) -> None:
    assert draw(strategy, seed=7) == draw(strategy, seed=7)


@pytest.mark.parametrize("strategy", ["random", "stratified"])
def test_other_seeds_give_other_splits(strategy: str) -> None:
    assert len({str(draw(strategy, seed)) for seed in range(20)}) == 20


def test_random_mixes_sources_and_stratified_draws_within_them() -> None:
    """Neither takes the first rows first."""
    assert draw("random", seed=42)[0] != list(range(30))
    first, _, _ = stratified([100], [0.3, 0.3, 0.4], seed=42)
    assert first.tolist() != list(range(30))


def test_random_gives_every_row_the_same_chance() -> None:
    """Over many seeds each row is in step 1 about as often as its share says: 0.3 · 400 = 120, σ = √(84) ≈ 9."""
    hits = sum(np.isin(np.arange(100), random(100, SHARES, seed)[0]).astype(int) for seed in range(400))
    assert 120 - 6 * 9.2 < hits.min() <= hits.max() < 120 + 6 * 9.2


DIGEST = """
import hashlib
import numpy as np
from sdpo_plugin import partition
parts = [
    *partition.natural([40, 1, 59]),
    *partition.random(100, [0.3, 0.3, 0.4], 7),
    *partition.stratified([40, 1, 59], [0.3, 0.3, 0.4], 7),
    *partition.easy_to_hard_sources([40, 1, 59], [0.5, 0.7, 0.5])[1],
    *partition.easy_to_hard_rows(np.arange(100) % 7, [0.3, 0.3, 0.4]),
]
digest = hashlib.sha256(b"|".join(rows.tobytes() for rows in parts)).hexdigest()
"""


def test_split_does_not_depend_on_the_process(run_python: RunPython) -> None:
    here: dict[str, str] = {}
    exec(DIGEST, here)
    assert run_python(DIGEST + "print(digest)", PYTHONHASHSEED="4242").stdout.strip() == here["digest"]


# --- easy to hard ---


@given(values=gammas, parts=weights)
def test_easier_rows_come_in_earlier_steps_and_ties_by_row_number(values: list[float], parts: list[int]) -> None:
    sizes_or_refusal(len(values), shares_of(parts))
    found = easy_to_hard_rows(np.array(values), shares_of(parts))
    for earlier, later in itertools.pairwise(found):
        assert max((-values[row], row) for row in earlier) < min((-values[row], row) for row in later)


def test_rows_by_hand() -> None:
    values = np.array([1.5, -2.0, 1.5, 7.0, -2.0, 0.0])  # ranked: 3, 0 and 2, 5, 1 and 4
    assert [rows.tolist() for rows in easy_to_hard_rows(values, [0.5, 0.5])] == [[0, 2, 3], [1, 4, 5]]
    assert [rows.tolist() for rows in easy_to_hard_rows(values, [1 / 3, 1 / 3, 1 / 3])] == [[0, 3], [2, 5], [1, 4]]


def test_ties_by_row_number_hold_among_many_rows() -> None:
    """NumPy's plain sort keeps the order of ties among few rows only."""
    values = (np.arange(1000) % 7).astype(np.float64)
    expected = sorted(range(1000), key=lambda row: (-values[row], row))
    found = easy_to_hard_rows(values, [0.1] * 10)
    assert [rows.tolist() for rows in found] == [sorted(expected[first : first + 100]) for first in range(0, 1000, 100)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_ranked_in_either_precision(dtype: type) -> None:
    assert [rows.tolist() for rows in easy_to_hard_rows(np.array([-1, 3, 2], dtype=dtype), [0.5, 0.5])] == [[1, 2], [0]]


@given(data=st.data(), sizes=source_sizes)
def test_sources_come_in_descending_accuracy_and_ties_in_order_of_the_config(
    data: st.DataObject, sizes: list[int]
) -> None:
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    accuracies = data.draw(st.lists(few, min_size=len(sizes), max_size=len(sizes)))
    order, _ = easy_to_hard_sources(sizes, accuracies)
    assert order == sorted(range(len(sizes)), key=lambda source: (-accuracies[source], source))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 6), (0.1, 6), (0.2, 5), (1 / 3, 4), (0.5, 3), (0.84, 1), (0.999, 1)])
def test_hardest_rows_are_in_no_step(share: float, kept: int) -> None:
    """Of 6 rows 0.1 is 0.6, which is no row; 0.2 is 1.2, a third is 2, 0.84 is 5.04. Ranked: 3, 0 and 2, 5, 1, 4."""
    assert rows_kept(6, share) == kept
    values, ranked = np.array([1.5, -2.0, 1.5, 7.0, -2.0, 0.0]), [3, 0, 2, 5, 1, 4]
    (rows,) = easy_to_hard_rows(values, [1.0], share)
    assert rows.tolist() == sorted(ranked[:kept])
    assert rows_in_none((rows,), 6).tolist() == sorted(ranked[kept:])


def test_shares_are_of_the_rows_that_are_left() -> None:
    """Of 10 rows 7 are left; a seventh of them is one, three sevenths are three."""
    parts = easy_to_hard_rows(-np.arange(10.0), [1 / 7, 3 / 7, 3 / 7], 0.3)
    assert [rows.tolist() for rows in parts] == [[0], [1, 2, 3], [4, 5, 6]]


def test_dropping_all_but_too_few_is_refused() -> None:
    with pytest.raises(ConfigError, match=refusal_of_empty_step(1, 2, "[1, 0]")):
        easy_to_hard_rows(np.arange(10.0), [0.5, 0.5], 0.9)


@given(values=gammas, parts=weights, share=st.sampled_from([0.0, 0.1, 0.5]))
def test_cumulative_step_has_the_rows_of_all_steps_before_it(
    values: list[float], parts: list[int], share: float
) -> None:
    sizes_or_refusal(rows_kept(len(values), share), shares_of(parts))
    alone = easy_to_hard_rows(np.array(values), shares_of(parts), share)
    found = easy_to_hard_rows(np.array(values), shares_of(parts), share, cumulative=True)
    for number, rows in enumerate(found):
        assert rows.tolist() == sorted(np.concatenate(alone[: number + 1]).tolist())


def test_sources_by_hand() -> None:
    order, parts = easy_to_hard_sources([2, 1, 3], [0.4, 0.6, 0.4])
    assert order == [1, 0, 2]
    assert [rows.tolist() for rows in parts] == [[2], [0, 1], [3, 4, 5]]


# --- prompts that stand elsewhere too ---


@pytest.mark.parametrize(
    ("prompts", "others", "count"),
    [
        pytest.param([1, 2, 3], [4, 5], 0, id="none"),
        pytest.param([1, 2, 3], [3, 1, 9], 2, id="some"),
        pytest.param([7, 7, 8], [7], 2, id="each-row-counts"),
        pytest.param([7, 8], [7, 7, 7], 1, id="others-count-once"),
        pytest.param([], [1], 0, id="no-rows"),
        pytest.param([1], [], 0, id="no-others"),
        # as float64, which NumPy makes of a mix of signed and unsigned, these two are one number
        pytest.param([2**64 - 1], [2**64 - 2], 0, id="neighbours-among-64-bit-hashes"),
    ],
)
def test_rows_also_in(prompts: list[int], others: list[int], count: int) -> None:
    assert rows_also_in(np.array(prompts, np.uint64), np.array(others, np.uint64)) == count


def test_count_of_rows_is_a_plain_integer() -> None:
    assert type(rows_also_in(np.array([1], np.uint64), np.array([1], np.uint64))) is int
