"""A reference that moves within a step: when it is made again, and which rows are still to come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.order import Order, rows_by_update, spread
from sdpo_plugin.refresh import WINDOW, RefreshRule, distance, half_mean_square, is_due, read_until
from tests.example_table import make

EVERY_5, ABOVE_1 = RefreshRule(every=5), RefreshRule(kl_above=1.0)


def refreshed(rule: RefreshRule, num_updates: int, estimates: list[float]) -> list[int]:
    """The updates after which it is refreshed, if the distance after update k is ``estimates[k - 1]``."""
    made_at, found = 0, []
    for update in range(1, num_updates + 1):
        if is_due(rule, update, made_at, num_updates, estimates[made_at:update]):
            found.append(update)
            made_at = update
    return found


def test_every_5_of_12_updates() -> None:
    assert refreshed(EVERY_5, 12, [0.0] * 12) == [5, 10]


def test_never_after_the_last_update() -> None:
    """Nothing reads it then."""
    assert refreshed(EVERY_5, 10, [0.0] * 10) == [5]
    assert refreshed(ABOVE_1, 3, [9.0, 9.0, 9.0]) == [1, 2]


def test_above_a_distance() -> None:
    """Means since the last refresh: 0, 0.5, 1 (not above), 1.5: refreshed after 4; then 0, 1.5: refreshed after 6."""
    assert refreshed(ABOVE_1, 8, [0.0, 1.0, 2.0, 3.0, 0.0, 3.0, 0.0, 0.0]) == [4, 6]


def test_the_distance_forgets_what_is_long_past() -> None:
    """1 to 12: of the last ten, 3 to 12, the mean is 7.5."""
    assert WINDOW == 10
    assert distance([float(number) for number in range(1, 13)]) == 7.5
    assert distance([]) is None


def test_no_estimate_no_refresh() -> None:
    assert not is_due(ABOVE_1, 5, 2, 10, [])


def test_half_the_mean_square() -> None:
    """Log-ratios 1, −1, 3, 1 of two pairs: squares sum up to 12; ½ · 12/4."""
    assert half_mean_square(12.0, 4) == 1.5


@given(st.integers(1, 40), st.integers(1, 200), st.data())
def test_resumed_anywhere_it_decides_the_same(every: int, num_updates: int, data: st.DataObject) -> None:
    """What a checkpoint holds, and nothing before it, decides; also that a refresh was due and not made."""
    rule = RefreshRule(every=every)
    whole = refreshed(rule, num_updates, [0.0] * num_updates)
    at = data.draw(st.integers(0, num_updates))
    before = [update for update in whole if update < at]
    made_at = before[-1] if before else 0
    assert is_due(rule, at, made_at, num_updates, []) == (at in whole)


@given(st.integers(1, 40), st.integers(1, 200))
def test_windows_meet(every: int, num_updates: int) -> None:
    """Each refresh is read up to the next, the last one up to the end."""
    rule = RefreshRule(every=every)
    starts = [0, *refreshed(rule, num_updates, [0.0] * num_updates)]
    ends = [read_until(rule, start, num_updates) for start in starts]
    assert ends == [*starts[1:], num_updates]


def test_by_distance_all_that_is_left_is_read() -> None:
    assert read_until(ABOVE_1, 3, 12) == 12


# --- rows ---


def test_rows_of_an_update_on_two_ranks() -> None:
    """Two batches an update; the fifth row of 5 is doubled by rank 1 where the ranks share out unevenly."""
    batches = [[[4], [0], [3]], [[2], [1], [4]]]
    assert [rows.tolist() for rows in rows_by_update(batches, 2)] == [[4, 0, 2, 1], [3, 4]]


def test_rows_to_come_over_the_end_of_an_epoch() -> None:
    """Epoch 1: 3 | 0, 1 | 2. Epoch 2: 1 | 2, 3 | 0. Updates 2 and 3 (from 0) read 2 and 1; 2 to 4 also 2 and 3."""
    epochs = [[np.array(rows) for rows in epoch] for epoch in ([[3], [0, 1], [2]], [[1], [2, 3], [0]])]
    order = Order(4, epochs)
    assert order.rows(2, 4).tolist() == [1, 2]
    assert order.rows(2, 5).tolist() == [1, 2, 3]
    assert order.rows(0, 6).tolist() == [0, 1, 2, 3]


def test_all_rows_where_the_order_is_not_known() -> None:
    assert Order(3, None).rows(2, 3).tolist() == [0, 1, 2]


def test_a_part_has_no_number_for_other_rows() -> None:
    """Row i of the part has −i − 0.1 and −2i − 0.3, and i + 1 and 2i + 1 tokens."""
    table = spread(make(2), np.array([1, 3]), 5)
    assert table.chosen == pytest.approx([np.nan, -0.1, np.nan, -1.1, np.nan], nan_ok=True)
    assert table.rejected == pytest.approx([np.nan, -0.3, np.nan, -2.3, np.nan], nan_ok=True)
    assert (table.chosen_tokens.tolist(), table.rejected_tokens.tolist()) == ([0, 1, 0, 2, 0], [0, 1, 0, 3, 0])
    assert (table.model, table.rows_digest) == (make().model, make().rows_digest)
    with pytest.raises(ReferenceTableError, match="not finite in 3 rows, first: row 0 with nan"):
        table.require_finite("part")
