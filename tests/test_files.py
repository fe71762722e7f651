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

from sdpo_plugin.run_dir.files import write_bytes, write_json

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
