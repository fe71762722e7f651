"""Of a large pool fewer rows: as many of each source as its weight says, and the same ones everywhere."""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.pool import drawn_rows, drawn_sizes, shared_out

sources = st.lists(st.sampled_from([1, 2, 3, 5, 8, 50, 101, 3000]), min_size=1, max_size=8)
parts = st.sampled_from([0.001, 0.1, 0.3, 1, 2, 2.5, 7, 1000])


@pytest.mark.parametrize(
    ("sizes", "max_rows", "weights", "kept"),
    [
        pytest.param([10, 90], 20, None, [2, 18], id="by-size"),  # a fifth of each
        pytest.param([100, 100, 100], 10, None, [4, 3, 3], id="equal-remainders-go-to-the-earlier"),  # 3.33 each
        pytest.param([24, 32], 30, None, [13, 17], id="larger-remainder"),  # 12.86 and 17.14
        pytest.param([10, 90], 20, [1, 1], [10, 10], id="equal-weights"),
        pytest.param([100, 100], 10, [1, 2], [3, 7], id="weights-round"),  # 3.33 and 6.67
        pytest.param([4, 90], 20, [1, 1], [4, 16], id="a-cap-gives-to-the-other"),
        # 10 each; the first has 4, which leaves 13 each; the second has 12, which leaves 14
        pytest.param([4, 12, 90], 30, [1, 1, 1], [4, 12, 14], id="a-cap-makes-another"),
        # 6 : 3 : 1 of 20 is 12, 6 and 2; the first has 4, and 16 in 3 : 1 are 12 and 4
        pytest.param([4, 50, 50], 20, [6, 3, 1], [4, 12, 4], id="the-rest-keeps-its-proportions"),
        pytest.param([5, 5], 8, [3, 1], [5, 3], id="share-above-the-cap"),  # 6 and 2
        pytest.param([5, 5], 100, [3, 1], [5, 5], id="more-than-there-is"),
        pytest.param([5, 7], 12, None, [5, 7], id="all"),
        pytest.param([24, 32], None, [1, 2], [16, 32], id="largest-pool"),  # 32 : 16 is what the second allows
        pytest.param([7, 9], None, [2, 3], [6, 9], id="largest-pool-of-thirds"),
        pytest.param([10, 10], None, [1, 3], [3, 10], id="largest-pool-rounds"),  # 10/3 of each part: 13 of 13.33 rows
        pytest.param([10, 30], None, [0.1, 0.3], [10, 30], id="decimals-are-meant-as-written"),
        pytest.param([8], None, [5.0], [8], id="one-source"),
    ],
)
def test_sizes_by_hand(sizes: list[int], max_rows: int | None, weights: list[float] | None, kept: list[int]) -> None:
    assert drawn_sizes(sizes, max_rows, weights) == kept


@pytest.mark.parametrize(
    ("sizes", "max_rows", "weights", "message"),
    [
        (
            [1, 99],
            10,
            None,
            "sdpo.partition: a pool of 10 rows takes [0, 10] rows of the sources, which have [1, 99], and each has to "
            "keep at least one; set a larger max_rows or weights that are closer to each other, or leave the source "
            "out of datasets:.",
        ),
        (
            [50, 5],
            None,
            [0.001, 1.0],
            "sdpo.partition: a pool of 5 rows, shared out by weights: [0.001, 1.0], takes [0, 5] rows of the sources, "
            "which have [50, 5], and each has to keep at least one; set a larger max_rows or weights that are closer "
            "to each other, or leave the source out of datasets:.",
        ),
    ],
)
def test_source_without_a_row_is_refused(
    sizes: list[int], max_rows: int | None, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        drawn_sizes(sizes, max_rows, weights)


def shares(sizes: Sequence[int], max_rows: int, weights: Sequence[float]) -> list[int]:
    return shared_out(max_rows, [Fraction(str(weight)) for weight in weights], sizes)


@given(data=st.data(), sizes=sources, max_rows=st.integers(1, 5000))
def test_sums_and_caps_hold(data: st.DataObject, sizes: list[int], max_rows: int) -> None:
    weights = data.draw(st.lists(parts, min_size=len(sizes), max_size=len(sizes)))
    kept = shares(sizes, max_rows, weights)
    assert sum(kept) == min(max_rows, sum(sizes))
    assert all(0 <= keep <= size for keep, size in zip(kept, sizes, strict=True))


@given(data=st.data(), sizes=sources, max_rows=st.integers(1, 5000))
def test_sources_below_their_caps_have_their_proportions(data: st.DataObject, sizes: list[int], max_rows: int) -> None:
    """And none that is at its cap has more than its proportion: within the one row that rounding gives or takes."""
    weights = data.draw(st.lists(parts, min_size=len(sizes), max_size=len(sizes)))
    kept = shares(sizes, max_rows, weights)
    below = [number for number, keep in enumerate(kept) if keep < sizes[number]]
    assume(below)
    rate = max(Fraction(kept[number] - 1) / Fraction(str(weights[number])) for number in below)
    assert all(kept[n] < rate * Fraction(str(weights[n])) + 2 for n in range(len(sizes)))
    assert all(kept[n] + 1 >= rate * Fraction(str(weights[n])) for n in below)


@given(data=st.data(), sizes=sources)
def test_largest_pool_in_which_the_weights_hold(data: st.DataObject, sizes: list[int]) -> None:
    """Some source is used up to less than a row a part, and each has its share within a row."""
    weights = data.draw(st.lists(parts, min_size=len(sizes), max_size=len(sizes)))
    try:
        kept = drawn_sizes(sizes, None, weights)
    except ConfigError:
        assume(False)
    exact = [Fraction(str(weight)) for weight in weights]
    most = min(size / part for size, part in zip(sizes, exact, strict=True))
    assert sum(kept) == int(most * sum(exact))
    assert all(abs(keep - most * part) <= 1 for keep, part in zip(kept, exact, strict=True))
    assert all(keep <= size for keep, size in zip(kept, sizes, strict=True))


@given(size=st.integers(1, 300), seed=st.integers(0, 2**32), source=st.integers(0, 5), data=st.data())
def test_rows_are_some_of_the_source(size: int, seed: int, source: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, size))
    rows = drawn_rows(source, size, keep, seed)
    assert rows.dtype == np.int64
    assert len(rows) == keep
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < size
    assert set(rows) <= set(drawn_rows(source, size, size, seed))
    assert set(drawn_rows(source, size, max(1, keep - 1), seed)) <= set(rows)


def test_rows_depend_on_seed_and_source() -> None:
    drawn = {tuple(drawn_rows(source, 100, 10, seed)) for source in range(3) for seed in range(20)}
    assert len(drawn) == 60
    assert list(drawn_rows(0, 100, 10, 42)) == list(drawn_rows(0, 100, 10, 42))


def test_every_row_has_the_same_chance() -> None:
    """Of 100 rows 30 by 400 seeds: 120 times each, σ = √84 ≈ 9.2."""
    hits = np.bincount(np.concatenate([drawn_rows(1, 100, 30, seed) for seed in range(400)]), minlength=100)
    assert 120 - 6 * 9.2 < hits.min() <= hits.max() < 120 + 6 * 9.2
