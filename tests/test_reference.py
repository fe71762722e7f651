"""The table of reference log-probs: whole, finite, of these rows, or not at all."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.reference import ReferenceTable, TableBuilder, concatenate

DIGEST = "0123456789abcdef" * 4
FIELDS = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")


def make(num_rows: int = 3, **arrays: Any) -> ReferenceTable:
    """Row i has log-probs −i − 0.1 and −2i − 0.3 and i + 1 and 2i + 1 tokens; 0.1 and 0.3 are not round in binary."""
    rows = np.arange(num_rows)
    values: dict[str, Any] = {
        "chosen": (-rows - 0.1).astype(np.float32),
        "rejected": (-2 * rows - 0.3).astype(np.float32),
        "chosen_tokens": rows + 1,
        "rejected_tokens": 2 * rows + 1,
    }
    return ReferenceTable(**{**values, **arrays}, model="M_1", rows_digest=DIGEST)


def fill(builder: TableBuilder, table: ReferenceTable, rows: Sequence[int]) -> None:
    index = np.array(rows, dtype=np.int64)
    logps = np.stack([table.chosen[index], table.rejected[index]])
    builder.fill(rows, logps, np.stack([table.chosen_tokens[index], table.rejected_tokens[index]]))


def content(table: ReferenceTable) -> tuple[object, ...]:
    return (
        *((getattr(table, name).dtype, getattr(table, name).tobytes()) for name in FIELDS),
        table.model,
        (table.rows_digest),
    )


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
    with pytest.raises(ReferenceTableError, match=re.escape(f"rows scored twice, first 10: [{twice}]")):
        fill(builder, table, [twice])


@given(st.data(), st.integers(1, 20))
def test_row_twice_in_one_batch_is_always_refused(data: st.DataObject, num_rows: int) -> None:
    twice = data.draw(st.integers(0, num_rows - 1))
    rows = data.draw(st.permutations([*range(num_rows), twice]))
    with pytest.raises(ReferenceTableError, match=re.escape(f"rows scored twice, first 10: [{twice}]")):
        fill(TableBuilder(num_rows), make(num_rows), rows)


def test_refused_batch_leaves_the_scores_as_they_were() -> None:
    table, builder = make(2), TableBuilder(2)
    fill(builder, table, [0, 1])
    with pytest.raises(ReferenceTableError, match=re.escape("rows scored twice, first 10: [1]")):
        builder.fill([1], np.full((2, 1), -99.0), np.full((2, 1), 99))
    assert content(builder.finish("M_1", DIGEST, "D_2")) == content(table)


@pytest.mark.parametrize("row", [-1, 3])
def test_row_outside_of_the_table_is_refused_and_nothing_of_its_batch_is_taken(row: int) -> None:
    """A negative number would count from the end, and overwrite the scores of that row."""
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


def test_log_prob_that_is_not_finite_is_told_by_the_name_of_its_row() -> None:
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
    """Sources are scored apart, joined as the pool, and cut into steps."""
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


# --- the file ---


@given(
    values=st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.integers(0, 2**40),
            st.integers(0, 2**40),
        ),
        max_size=20,
    )
)
def test_file_gives_back_every_bit(values: list[tuple[float, float, int, int]], tmp_path_factory: Any) -> None:
    columns = list(zip(*values, strict=True)) or [()] * 4
    table = make(
        chosen=np.array(columns[0], np.float32),
        rejected=np.array(columns[1], np.float32),
        chosen_tokens=np.array(columns[2], np.int64),
        rejected_tokens=np.array(columns[3], np.int64),
    )
    path = tmp_path_factory.getbasetemp() / "roundtrip.safetensors"
    table.save(path)
    assert content(ReferenceTable.load(path)) == content(table)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-2.safetensors"
    make(3).save(path)
    return path


def header_size(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(("kind", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F16", 2), ("I8", 1), ("U64", 8), ("F64", 8)])
def test_column_of_another_type_is_refused(saved: Path, kind: str, size: int) -> None:
    """Some of them numpy does not know."""
    data = saved.read_bytes()
    end = 8 + header_size(data)
    header = json.loads(data[8:end])
    low, high = header["chosen_tokens"]["data_offsets"]
    header["chosen_tokens"] |= {"dtype": kind, "shape": [(high - low) // size]}
    changed = json.dumps(header).encode()
    saved.write_bytes(len(changed).to_bytes(8, "little") + changed + data[end:])
    with pytest.raises(ReferenceTableError, match=re.escape(f"{saved} is not a reference table of schema version 1")):
        ReferenceTable.load(saved)


@pytest.mark.parametrize("brackets", ["[", '{"a":'])
def test_header_that_is_nested_without_end_is_refused(saved: Path, brackets: str) -> None:
    header = brackets.encode() * 10**5
    saved.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
        ReferenceTable.load(saved)


def test_directory_in_the_place_of_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {tmp_path}: ")):
        ReferenceTable.load(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {path}: No such file")):
        ReferenceTable.load(path)


def test_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in [*range(0, len(whole), 9), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
            ReferenceTable.load(saved)


@pytest.mark.parametrize("bit", range(0, 64, 7))
def test_file_with_a_flipped_bit_in_the_header_size_is_refused(saved: Path, bit: int) -> None:
    data = bytearray(saved.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    saved.write_bytes(data)
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
        ReferenceTable.load(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b'"F32"', b'"F30"', id="dtype"),
        pytest.param(b'"shape":[3]', b'"shape":[2]', id="shape"),
        pytest.param(b'"data_offsets":[48,', b'"data_offsets":[49,', id="offset"),
        pytest.param(b"{", b"[", id="json"),
    ],
)
def test_file_with_a_damaged_header_is_refused(saved: Path, old: bytes, new: bytes) -> None:
    data = saved.read_bytes()
    assert old in data
    saved.write_bytes(data.replace(old, new, 1))
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
        ReferenceTable.load(saved)


def test_flipped_bits_in_the_header_are_refused_or_change_nothing(saved: Path) -> None:
    whole = saved.read_bytes()
    for bit in range(64, 64 + 8 * header_size(whole), 31):  # 31: every fourth byte, each place in a byte
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(data)
        try:
            loaded = ReferenceTable.load(saved)
        except ReferenceTableError:
            continue
        assert content(loaded) == content(make(3))


def test_flipped_bits_in_the_numbers_are_refused(saved: Path) -> None:
    """All of them are finite numbers still; safetensors itself takes them."""
    whole = saved.read_bytes()
    begin = 8 + header_size(whole)
    assert len(whole) == begin + 3 * (4 + 4 + 8 + 8)
    for byte in range(begin, len(whole)):
        data = bytearray(whole)
        data[byte] ^= 1 << byte % 8
        saved.write_bytes(data)
        expected = f"{saved}: the reference table does not fit its checksum; the file is damaged"
        with pytest.raises(ReferenceTableError, match=f"^{re.escape(expected)}$"):
            ReferenceTable.load(saved)


def about(**changes: str | None) -> dict[str, str]:
    """The metadata of ``make(3)``; None leaves a key out."""
    facts = {"schema_version": "1", "model": "M_1", "rows_digest": DIGEST, "checksum": make(3).checksum(), **changes}
    return {key: value for key, value in facts.items() if value is not None}


def write(path: Path, metadata: dict[str, str] | None = None, drop: str = "", **arrays: Any) -> None:
    values = {name: getattr(make(3), name) for name in FIELDS if name != drop} | arrays
    save_file(values, path, about() if metadata is None else metadata)


def test_what_these_tests_write_is_a_table(tmp_path: Path) -> None:
    """Or the refusals below would prove nothing."""
    write(tmp_path / "t.safetensors")
    assert content(ReferenceTable.load(tmp_path / "t.safetensors")) == content(make(3))


def test_file_can_be_read_without_this_package(saved: Path) -> None:
    assert {name: array.tolist() for name, array in load_file(saved).items()} == {
        name: getattr(make(3), name).tolist() for name in FIELDS
    }


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"metadata": about(schema_version="2")}, id="newer-version"),
        pytest.param({"metadata": {}}, id="no-metadata"),
        pytest.param({"metadata": about(model=None)}, id="no-model"),
        pytest.param({"metadata": about(rows_digest=None)}, id="no-digest"),
        pytest.param({"metadata": about(checksum=None)}, id="no-checksum"),
        pytest.param({"metadata": about(format="pt")}, id="metadata-too-many"),
        pytest.param({"drop": "rejected_tokens"}, id="column-missing"),
        pytest.param({"weight": np.zeros(3, np.float32)}, id="column-too-many"),
        pytest.param({"chosen": np.zeros(3, np.float64)}, id="double-precision"),
        pytest.param({"chosen_tokens": np.ones(3, np.int32)}, id="short-integers"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "other.safetensors"
    write(path, **changes)
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path} is not a reference table of schema version 1")):
        ReferenceTable.load(path)


@pytest.mark.parametrize("changes", [{"model": "M_0"}, {"rows_digest": "f" * 64}], ids=["model", "rows_digest"])
def test_file_whose_numbers_belong_to_something_else_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    path = tmp_path / "t.safetensors"
    write(path, metadata=about(**changes))
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path}: the reference table does not fit its checksum")):
        ReferenceTable.load(path)


def test_file_with_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    make(rejected=np.array([-1, np.nan, -1], np.float32)).save(path)
    expected = f"{path}: the reference log-prob of the rejected answer is not finite in 1 rows, first: row 1 with nan."
    with pytest.raises(ReferenceTableError, match=re.escape(expected)):
        ReferenceTable.load(path)


@pytest.mark.parametrize("column", FIELDS)
def test_file_with_columns_of_two_lengths_is_refused(tmp_path: Path, column: str) -> None:
    path = tmp_path / "t.safetensors"
    make(3, **{column: getattr(make(2), column)}).save(path)
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path}: the columns of the reference table have differ")):
        ReferenceTable.load(path)


def test_file_with_columns_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    make(4, **{name: getattr(make(4), name).reshape(2, 2) for name in FIELDS}).save(path)
    with pytest.raises(ReferenceTableError, match=re.escape(str(path))):
        ReferenceTable.load(path)
