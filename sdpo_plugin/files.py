"""How this package writes files: whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


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
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON.

    Raises:
        ValueError: ``value`` holds a number that is not finite.
        OSError: as in ``write_bytes``.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def canonical_json(value: Any) -> bytes:
    """The one byte string of ``value``: sorted keys, no spaces. What fingerprints are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
