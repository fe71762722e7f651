"""The file of a table of log-probs: every bit comes back, or the file is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sdpo_plugin.errors import OutputError, ReferenceTableError
from sdpo_plugin.run_dir.table_files import load_table, save_table
from tests.example_table import DIGEST, FIELDS, make
from tests.fakes import content


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
    save_table(table, path)
    assert content(load_table(path)) == content(table)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-2.safetensors"
    save_table(make(3), path)
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
    with pytest.raises(ReferenceTableError, match=re.escape(f"{saved} is not a reference table of schema version 2")):
        load_table(saved)


@pytest.mark.parametrize("brackets", ["[", '{"a":'])
def test_header_that_is_nested_without_end_is_refused(saved: Path, brackets: str) -> None:
    header = brackets.encode() * 10**5
    saved.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
        load_table(saved)


def test_directory_in_the_place_of_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {tmp_path}: ")):
        load_table(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {path}: No such file")):
        load_table(path)


def test_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in [*range(0, len(whole), 9), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
            load_table(saved)


@pytest.mark.parametrize("bit", range(0, 64, 7))
def test_file_with_a_flipped_bit_in_the_header_size_is_refused(saved: Path, bit: int) -> None:
    data = bytearray(saved.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    saved.write_bytes(data)
    with pytest.raises(ReferenceTableError, match=re.escape(f"cannot read the reference table {saved}: ")):
        load_table(saved)


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
        load_table(saved)


def test_flipped_bits_in_the_header_are_refused_or_change_nothing(saved: Path) -> None:
    whole = saved.read_bytes()
    for bit in range(64, 64 + 8 * header_size(whole), 31):  # 31: every fourth byte, each place in a byte
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(data)
        try:
            loaded = load_table(saved)
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
        expected = f"{saved}: the reference table does not fit its digest; the file is damaged"
        with pytest.raises(ReferenceTableError, match=f"^{re.escape(expected)}$"):
            load_table(saved)


def about(**changes: str | None) -> dict[str, str]:
    """The metadata of ``make(3)``; None leaves a key out."""
    facts = {"schema_version": "2", "model": "M_1", "rows_digest": DIGEST, "digest": make(3).digest(), **changes}
    return {key: value for key, value in facts.items() if value is not None}


def write(path: Path, metadata: dict[str, str] | None = None, drop: str = "", **arrays: Any) -> None:
    values = {name: getattr(make(3), name) for name in FIELDS if name != drop} | arrays
    save_file(values, path, about() if metadata is None else metadata)


def test_what_these_tests_write_is_a_table(tmp_path: Path) -> None:
    """Or the refusals below would prove nothing."""
    write(tmp_path / "t.safetensors")
    assert content(load_table(tmp_path / "t.safetensors")) == content(make(3))


def test_file_can_be_read_without_this_package(saved: Path) -> None:
    assert {name: array.tolist() for name, array in load_file(saved).items()} == {
        name: getattr(make(3), name).tolist() for name in FIELDS
    }


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"metadata": about(schema_version="3")}, id="newer-version"),
        pytest.param({"metadata": about(schema_version="1")}, id="older-version"),
        pytest.param({"metadata": about(schema_version=None)}, id="no-version"),
        pytest.param({"metadata": {}}, id="no-metadata"),
        pytest.param({"metadata": about(model=None)}, id="no-model"),
        pytest.param({"metadata": about(rows_digest=None)}, id="no-digest-of-the-rows"),
        pytest.param({"metadata": about(digest=None)}, id="no-digest"),
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
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path} is not a reference table of schema version 2")):
        load_table(path)


@pytest.mark.parametrize("changes", [{"model": "M_0"}, {"rows_digest": "f" * 64}], ids=["model", "rows_digest"])
def test_file_whose_numbers_belong_to_something_else_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    path = tmp_path / "t.safetensors"
    write(path, metadata=about(**changes))
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path}: the reference table does not fit its digest")):
        load_table(path)


def test_file_with_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    save_table(make(rejected=np.array([-1, np.nan, -1], np.float32)), path)
    expected = f"{path}: the reference log-prob of the rejected answer is not finite in 1 rows, first: row 1 with nan."
    with pytest.raises(ReferenceTableError, match=re.escape(expected)):
        load_table(path)


@pytest.mark.parametrize("column", FIELDS)
def test_file_with_columns_of_two_lengths_is_refused(tmp_path: Path, column: str) -> None:
    path = tmp_path / "t.safetensors"
    save_table(make(3, **{column: getattr(make(2), column)}), path)
    with pytest.raises(ReferenceTableError, match=re.escape(f"{path}: the columns of the reference table have differ")):
        load_table(path)


def test_file_with_columns_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_table(make(4, **{name: getattr(make(4), name).reshape(2, 2) for name in FIELDS}), path)
    with pytest.raises(ReferenceTableError, match=re.escape(str(path))):
        load_table(path)


def test_table_that_cannot_be_written_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "reference").touch()
    path = tmp_path / "reference" / "step-1.safetensors"
    with pytest.raises(OutputError, match=rf"^{re.escape(str(path))} could not be written: "):
        save_table(make(3), path)
