"""Digests: canonical, the same on every machine and in every version, and of everything that is to count."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.digests import (
    BLOCK_BYTES,
    canonical_json,
    of_arrays,
    of_chunks,
    of_file,
    of_files,
    of_json,
    of_samples,
)

# --- SHA-256 of JSON values and arrays ---


def test_canonical_json_is_sorted_and_dense() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "γ"}}) == b'{"a":{"c":"\\u03b3","d":null},"b":[1,2.5]}'


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json({"learning_rate": math.nan})


def test_digest_of_a_json_value_is_the_sha_256_of_its_canonical_json() -> None:
    # printf '{"a":1,"b":[]}' | sha256sum
    expected = "f87e4099e9be5e75094e0a4f46d3dc18a9c37429314a5a2490fb78d31e7e170c"
    assert of_json({"b": [], "a": 1}) == of_json({"a": 1, "b": []}) == expected
    assert of_json({"a": 1, "b": None}) != expected


def test_digest_of_arrays_is_the_sha_256_of_the_text_and_the_little_endian_bytes() -> None:
    # printf 'ab\x01\x00\x00\x00\x00\x00\xc0\x3f' | sha256sum  (int32 1, float32 1.5)
    expected = "03cf5e91878a0af8b34551bd557d3969f1b0e868c31e780ff272e7ed4c9baa3d"
    arrays = [np.array([1], np.int32), np.array([1.5], np.float32)]
    assert of_arrays(arrays, "ab") == expected
    assert of_arrays([array.astype(array.dtype.newbyteorder(">")) for array in arrays], "ab") == expected
    assert of_arrays([np.array([[1, 7], [2, 7]], np.int32)[:, 0]]) == of_arrays([np.array([1, 2], np.int32)])
    assert len({of_arrays(arrays, "ab"), of_arrays(arrays, "a"), of_arrays(arrays[::-1], "ab")}) == 3


# --- XXH3 of bytes and files ---


def test_digest_of_bytes_is_their_xxh3_of_128_bits() -> None:
    # printf '' | xxhsum -H2, and: python -c 'import xxhash; print(xxhash.xxh3_128_hexdigest(b"sdpo"))'
    assert of_chunks([]) == of_chunks([b""]) == "99aa06d3014798d86001c324468d497f"
    assert of_chunks([b"sdpo"]) == "6ef622136f70131490c018755133a585"


@given(st.lists(st.binary(max_size=8)))
def test_division_into_chunks_does_not_count(chunks: list[bytes]) -> None:
    assert of_chunks(chunks) == of_chunks([b"".join(chunks)])


def write(directory: Path, **files: bytes | bytearray) -> list[Path]:
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return [directory / name for name in files]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 7])
def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(0).bytes(size)
    assert of_file(*write(tmp_path, w=data)) == of_chunks([data])


def test_digest_of_files_is_that_of_names_sizes_and_contents(tmp_path: Path) -> None:
    # python -c 'import xxhash; print(xxhash.xxh3_128_hexdigest(b"a\n2\nxyb\n0\n"))'
    assert (
        of_files(write(tmp_path, a=b"xy", b=b""))
        == of_chunks([b"a\n2\nxyb\n0\n"])
        == "2c7741e17f158ac5a9b6a998557625f2"
    )


def test_one_letter_counts_and_time_does_not(tmp_path: Path) -> None:
    paths = write(tmp_path, a=b"b.jsonl")
    before = of_files(paths)
    os.utime(paths[0], (1, 1))
    assert of_files(paths) == before
    assert of_files(write(tmp_path, a=b"c.jsonl")) != before


def test_file_larger_than_a_block_counts_to_its_end(tmp_path: Path) -> None:
    before = of_files(write(tmp_path, large=bytes(9_000_000)))
    assert of_files(write(tmp_path, large=bytes(8_999_999) + b"\1")) != before


def test_where_one_file_ends_and_the_next_begins_counts(tmp_path: Path) -> None:
    assert of_files(write(tmp_path, one=b"ab", two=b"c")) != of_files(write(tmp_path, one=b"a", two=b"bc"))


def test_order_of_files_counts(tmp_path: Path) -> None:
    paths = write(tmp_path, one=b"ab", two=b"c")
    assert of_files(paths) != of_files(paths[::-1])


# --- XXH3 of samples ---

BLOCK = 65536
WHOLE = 16 * BLOCK  # bytes up to which a file counts whole


def sampled(directory: Path, **files: bytes | bytearray) -> str:
    return of_samples(write(directory, **files))


def test_digest_of_small_files_is_that_of_all_that_they_hold(tmp_path: Path) -> None:
    """In the order of their names."""
    assert of_samples(write(tmp_path, b=b"", a=b"xy")) == of_chunks([b"a\n2\nxyb\n0\n"])


def sampled_by_hand(data: bytes, begins: Sequence[int]) -> str:
    return of_chunks([f"w\n{len(data)}\n".encode(), *(data[begin : begin + BLOCK] for begin in begins)])


@pytest.mark.parametrize("size", [WHOLE + 1, 31 * BLOCK, 40 * BLOCK + 11])
def test_digest_of_a_large_file_is_that_of_16_blocks_from_its_first_byte_to_its_last(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(0).bytes(size)
    begins = [int((size - BLOCK) * number / 15) for number in range(16)]
    assert begins[-1] + BLOCK == size
    assert sampled(tmp_path, w=data) == sampled_by_hand(data, begins)


@pytest.mark.parametrize("place", [0, 1, WHOLE // 2, WHOLE - 1])
def test_small_file_counts_to_the_last_bit(tmp_path: Path, place: int) -> None:
    data = bytearray(WHOLE)
    before = sampled(tmp_path, w=data)
    data[place] ^= 1
    assert sampled(tmp_path, w=data) != before


def test_names_sizes_and_files_count_and_their_order_and_place_do_not(tmp_path: Path) -> None:
    digests = [
        sampled(tmp_path / "1", a=b"x", b=b"y"),
        sampled(tmp_path / "2", b=b"y", a=b"x"),
        sampled(tmp_path / "3", a=b"x", c=b"y"),
        sampled(tmp_path / "4", a=b"x"),
        sampled(tmp_path / "5", a=b"xy", b=b""),
        sampled(tmp_path / "6"),
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_every_other_block_of_a_file_of_31_blocks_counts(tmp_path: Path) -> None:
    """16 blocks begin 30 blocks / 15 = 2 blocks apart."""
    data = bytearray(31 * BLOCK)
    before = sampled(tmp_path, w=data)
    for number in range(31):
        for place in (number * BLOCK, (number + 1) * BLOCK - 1):
            data[place] ^= 1
            assert (sampled(tmp_path, w=data) != before) is (number % 2 == 0)
            data[place] ^= 1
    assert sampled(tmp_path, w=data) == before
    assert sampled(tmp_path, w=data + b"\x00") != before
