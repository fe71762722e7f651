"""Files that are written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdpo_plugin.errors import OutputError


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: temp file, fsync, rename, fsync of the directory.

    A reader, or a run that comes after a crash, sees the old file or the new one, never a part.

    Raises:
        OSError: the directory is not writable or the disk is full; ``path`` is then the old file, or, where only the
            last fsync of the directory failed, the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temp).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temp).replace(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Put the content of a file that another has written on disk.

    Raises:
        OSError: it cannot be opened or synced.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Put the names in ``directory`` on disk: without it a rename may be lost with the power.

    Raises:
        OSError: the directory cannot be opened or synced.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON.

    Raises:
        ValueError: ``value`` holds a number that is not finite.
        OSError: as in ``write_bytes``.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there.

    Raises:
        OSError, ValueError: a name is too long, or has a null byte in it.
    """
    return next(part for part in (path, *path.absolute().parents) if part.exists())


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is, or would be."""
    return shutil.disk_usage(existing_part(path)).free


def cannot_write(path: Path, error: BaseException) -> OutputError:
    """The error for a write that failed: disk full, quota used up, directory taken away."""
    return OutputError(
        f"{path} could not be written: {error} ({free_bytes(path) / 2**30:.1f} GiB are free there). What "
        "was on disk before is whole; free some space, or keep fewer checkpoints (save_total_limit, save_only_model), "
        "and resume with auto_resume_from_checkpoints: true."
    )


@contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Say where a write failed, and that nothing before it is lost.

    Raises:
        OutputError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def require_no_link(path: Path) -> None:
    """Refuse to write where a symbolic link leads: what is there is another's.

    Raises:
        OutputError: the path is one; the message says where it leads.
    """
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link to {path.readlink()}, and a run writes nothing outside of its output_dir; "
            "put what it leads to in its place, or remove the link."
        )


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; of a symbolic link only the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
