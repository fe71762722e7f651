"""A file is written whole or not at all."""

import errno
import io
import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_plugin.files import canonical_json, fingerprint, sampled_digest, write_bytes, write_json

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class FullDisk(io.BufferedWriter):
    """A file that takes nothing."""

    def write(self, data: Any) -> int:
        raise NO_SPACE


def fail(*args: Any, **kwargs: Any) -> Any:
    raise NO_SPACE


def break_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fdopen", lambda handle, mode: FullDisk(io.FileIO(handle, mode)))


def break_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", fail)


def break_chmod(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "chmod", fail)


def break_replace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "replace", fail)


STAGES = pytest.mark.parametrize(
    "break_stage", [break_write, break_fsync, break_chmod, break_replace], ids=["write", "fsync", "chmod", "replace"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@STAGES
@settings(max_examples=15)
@given(old=st.binary(max_size=50), new=JSON)
def test_failed_write_leaves_old_file_and_nothing_else(
    break_stage: Callable[[pytest.MonkeyPatch], None], old: bytes, new: Any
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger.json"
        path.write_bytes(old)
        with pytest.MonkeyPatch.context() as patch:
            break_stage(patch)
            with pytest.raises(OSError, match="No space left on device"):
                write_json(path, new)
        assert path.read_bytes() == old
        assert list(path.parent.iterdir()) == [path]


@STAGES
def test_failed_first_write_leaves_nothing(
    break_stage: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_stage(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        write_bytes(tmp_path / "ledger.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_no_temp_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "ledger.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_data_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(handle: int) -> None:
        order.append("fsync directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def noting_replace(source: Path, target: Path) -> Path:
        order.append(f"replace {target.name}, then {source.read_bytes()!r}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_bytes(tmp_path / "a", b"whole")
    assert order == ["fsync file", "replace a, then b'whole'", "fsync directory"]


def test_write_bytes_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a longer old content")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_write_bytes_makes_missing_directories(tmp_path: Path) -> None:
    path = tmp_path / "sdpo" / "reference" / "step-1"
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_write_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": None})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1\n  ],\n  "a": null\n}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_write_json_refuses_what_is_not_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(path, {"loss": value})
    assert path.read_text() == "old"


def test_canonical_json_is_sorted_and_dense() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "γ"}}) == b'{"a":{"c":"\\u03b3","d":null},"b":[1,2.5]}'


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json({"learning_rate": math.nan})


def test_fingerprint_is_the_sha_256_of_the_canonical_json() -> None:
    # printf '{"a":1,"b":[]}' | sha256sum
    expected = "f87e4099e9be5e75094e0a4f46d3dc18a9c37429314a5a2490fb78d31e7e170c"
    assert fingerprint({"b": [], "a": 1}) == fingerprint({"a": 1, "b": []}) == expected
    assert fingerprint({"a": 1, "b": None}) != expected


# --- a digest of samples ---

BLOCK = 65536
WHOLE = 16 * BLOCK  # bytes up to which a file counts whole


def digest_of(directory: Path, **files: bytes | bytearray) -> str:
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return sampled_digest(directory / name for name in files)


@pytest.mark.parametrize("place", [0, 1, WHOLE // 2, WHOLE - 1])
def test_small_file_counts_to_the_last_bit(tmp_path: Path, place: int) -> None:
    data = bytearray(WHOLE)
    before = digest_of(tmp_path, w=data)
    data[place] ^= 1
    assert digest_of(tmp_path, w=data) != before


def test_names_sizes_and_files_count_and_their_order_and_place_do_not(tmp_path: Path) -> None:
    digests = [
        digest_of(tmp_path / "1", a=b"x", b=b"y"),
        digest_of(tmp_path / "2", b=b"y", a=b"x"),
        digest_of(tmp_path / "3", a=b"x", c=b"y"),
        digest_of(tmp_path / "4", a=b"x"),
        digest_of(tmp_path / "5", a=b"xy", b=b""),
        digest_of(tmp_path / "6"),
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_large_file_is_sampled_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    """16 blocks begin 30 blocks / 15 = 2 blocks apart: every other block is read."""
    data = bytearray(31 * BLOCK)
    before = digest_of(tmp_path, w=data)
    for number in range(31):
        for place in (number * BLOCK, (number + 1) * BLOCK - 1):
            data[place] ^= 1
            assert (digest_of(tmp_path, w=data) != before) is (number % 2 == 0)
            data[place] ^= 1
    assert digest_of(tmp_path, w=data) == before
    assert digest_of(tmp_path, w=data + b"\x00") != before
