"""The table of log-probs: whole, finite, of these rows, or not at all."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.tables import LogProbTable, TableBuilder, concatenate
from tests.example_table import DIGEST, FIELDS, make
from tests.fakes import content


def fill(builder: TableBuilder, table: LogProbTable, rows: Sequence[int]) -> None:
    index = np.array(rows, dtype=np.int64)
    logps = np.stack([table.chosen[index], table.rejected[index]])
    builder.fill(rows, logps, np.stack([table.chosen_tokens[index], table.rejected_tokens[index]]))


@st.composite
def batches(draw: st.DrawFn, rows: Sequence[int]) -> list[list[int]]:
    """The rows in any order, cut anywhere."""
    order = draw(st.permutations(rows))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=5)))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


# --- building ---


@given(st.data(), st.integers(1, 20))
def test_any_order_and_any_batches_give_the_same_table(data: st.DataObject, num_rows: int) -> None:
    table, builder = make(num_rows), TableBuilder(num_rows)
    for rows in data.draw(batches(range(num_rows))):
        fill(builder, table, rows)
    assert content(builder.finish("M_1", DIGEST, "D_2")) == content(table)


@given(st.data(), st.integers(1, 20))
def test_missing_rows_are_always_refused(data: st.DataObject, num_rows: int) -> None:
    missing = sorted(data.draw(st.sets(st.integers(0, num_rows - 1), min_size=1)))
    builder = TableBuilder(num_rows)
    for rows in data.draw(batches([row for row in range(num_rows) if row not in missing])):
        fill(builder, make(num_rows), rows)
    expected = f"the reference table of D_2 misses {len(missing)} of {num_rows} rows, first 10: {missing[:10]}"
    with pytest.raises(ReferenceTableError, match=f"^{re.escape(expected)}$"):
        builder.finish("M_1", DIGEST, "D_2")


@given(st.data(), st.integers(1, 20))
def test_row_of_an_earlier_batch_is_always_refused(data: st.DataObject, num_rows: int) -> None:
    twice = data.draw(st.integers(0, num_rows - 1))
    table, builder = make(num_rows), TableBuilder(num_rows)
    for rows in data.draw(batches(range(num_rows))):
        fill(builder, table, rows)
    with pytest.raises(ReferenceTableError, match=re.escape(f"rows computed twice, first 10: [{twice}]")):
        fill(builder, table, [twice])


@given(st.data(), st.integers(1, 20))
def test_row_twice_in_one_batch_is_always_refused(data: st.DataObject, num_rows: int) -> None:
    twice = data.draw(st.integers(0, num_rows - 1))
    rows = data.draw(st.permutations([*range(num_rows), twice]))
    with pytest.raises(ReferenceTableError, match=re.escape(f"rows computed twice, first 10: [{twice}]")):
        fill(TableBuilder(num_rows), make(num_rows), rows)


def test_refused_batch_leaves_the_log_probs_as_they_were() -> None:
    table, builder = make(2), TableBuilder(2)
    fill(builder, table, [0, 1])
    with pytest.raises(ReferenceTableError, match=re.escape("rows computed twice, first 10: [1]")):
        builder.fill([1], np.full((2, 1), -99.0), np.full((2, 1), 99))
    assert content(builder.finish("M_1", DIGEST, "D_2")) == content(table)


@pytest.mark.parametrize("row", [-1, 3])
def test_row_outside_of_the_table_is_refused_and_nothing_of_its_batch_is_taken(row: int) -> None:
    """A negative number would count from the end, and overwrite the log-probs of that row."""
    builder = TableBuilder(3)
    with pytest.raises(AssertionError):
        builder.fill([0, 1, 2, row], np.zeros((2, 4)), np.ones((2, 4), dtype=np.int64))
    fill(builder, make(3), range(3))
    assert content(builder.finish("M_1", DIGEST, "D_2")) == content(make(3))


def test_batch_without_rows_changes_nothing() -> None:
    builder = TableBuilder(1)
    builder.fill([], np.zeros((2, 0)), np.zeros((2, 0), dtype=np.int64))
    fill(builder, make(1), [0])
    assert content(builder.finish("M_1", DIGEST, "D_2")) == content(make(1))


def test_table_of_no_rows_cannot_be_begun() -> None:
    with pytest.raises(AssertionError):
        TableBuilder(0)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_log_prob_that_is_not_finite_is_refused(side: str, value: float) -> None:
    logps = np.zeros((2, 4), dtype=np.float32)
    logps[("chosen", "rejected").index(side), 2:] = value
    builder = TableBuilder(4)
    builder.fill(range(4), logps, np.ones((2, 4), dtype=np.int64))
    expected = (
        f"D_2: the reference log-prob of the {side} answer is not finite in 2 rows, first: row 2 with {value}. "
        "The model overflows on these rows: train in bf16 or fp32 instead of fp16, or remove them."
    )
    with pytest.raises(ReferenceTableError, match=f"^{re.escape(expected)}$"):
        builder.finish("M_1", DIGEST, "D_2")


def test_log_prob_that_is_not_finite_is_reported_with_the_name_of_its_row() -> None:
    builder = TableBuilder(4)
    builder.fill(range(4), np.array([[0, 0, 0, 0], [0, np.nan, 0, np.nan]]), np.ones((2, 4), dtype=np.int64))
    expected = "answer is not finite in 2 rows, first: row 1 of orca with nan. The model overflows on these rows: "
    with pytest.raises(ReferenceTableError, match=re.escape(expected)):
        builder.finish("M_1", DIGEST, "D_2", name_row=lambda row: f"row {row} of orca")


def test_finished_table_names_its_model_and_rows() -> None:
    builder = TableBuilder(1)
    fill(builder, make(1), [0])
    table = builder.finish("M_7", DIGEST, "D_2")
    assert (table.model, table.rows_digest, len(table)) == ("M_7", DIGEST, 1)


# --- rows ---


def test_table_serves_its_own_rows() -> None:
    make(3).require_rows(3, DIGEST)


@pytest.mark.parametrize(
    ("num_rows", "digest"),
    [
        pytest.param(4, DIGEST, id="number"),
        pytest.param(3, "f" * 64, id="digest"),
        pytest.param(0, "f" * 64, id="both"),
    ],
)
def test_table_refuses_other_rows(num_rows: int, digest: str) -> None:
    expected = (
        "the reference table of M_1 has 3 rows with digest 0123456789ab, "
        f"but the step has {num_rows} rows with digest {digest[:12]}: it was made for other data."
    )
    with pytest.raises(ReferenceTableError, match=f"^{re.escape(expected)}$"):
        make(3).require_rows(num_rows, digest)


# --- parts of a table, tables of parts ---


def test_selected_rows_stand_in_the_order_asked_for() -> None:
    table = make(4).select(np.array([3, 0]), "f" * 64)
    assert content(table) == content(
        dataclasses.replace(make(4), rows_digest="f" * 64, **{name: getattr(make(4), name)[[3, 0]] for name in FIELDS})
    )


def test_selected_rows_are_no_window_on_the_table() -> None:
    whole = make(3)
    whole.select(np.arange(3), DIGEST).chosen[0] = 99.0
    assert content(whole) == content(make(3))


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_tables_of_sources_cut_anew_lose_nothing(data: st.DataObject, sizes: list[int]) -> None:
    """Each source has a table of its own; they are joined as the pool, and cut into steps."""
    whole = make(sum(sizes))
    ends = np.cumsum(sizes)
    sources = [whole.select(np.arange(end - size, end), f"source {end}") for size, end in zip(sizes, ends, strict=True)]
    pool = concatenate(sources)
    assert (pool.model, pool.rows_digest) == ("M_1", "")
    steps = data.draw(batches(range(len(whole))))
    rejoined = concatenate([pool.select(np.array(rows, dtype=np.int64), "step") for rows in steps])
    order = np.argsort(np.concatenate(steps).astype(np.int64))
    assert content(rejoined.select(order, DIGEST)) == content(whole)


def test_tables_of_two_models_are_not_joined() -> None:
    with pytest.raises(AssertionError):
        concatenate([make(1), dataclasses.replace(make(1), model="M_0")])


@pytest.mark.parametrize(
    "change",
    [{"model": "M_0"}, {"rows_digest": "f" * 64}, *({name: getattr(make(3), name)[::-1]} for name in FIELDS)],
    ids=["model", "rows_digest", *FIELDS],
)
def test_digest_of_a_table_counts_all_that_it_says(change: dict[str, Any]) -> None:
    assert dataclasses.replace(make(3), **change).digest() != make(3).digest() == make(3).digest()
