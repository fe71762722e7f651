"""One run a directory: a lock that the kernel takes back when its process ends, however it ends."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from sdpo_plugin.errors import OutputError


class RunLock:
    """Holds an output directory for this process.

    A POSIX record lock: it is not inherited by worker processes, so that none of them can outlive its run and keep
    it, and NFS and the cluster file systems that have locks at all keep it across machines.

    Raises:
        OutputError: another process holds it, or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = path.open("a+", encoding="utf-8")
        try:
            _lock(self._file, path.parent.parent)
            self._file.truncate(0)
            self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            self._file.flush()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the directory back. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None


def require_free(path: Path) -> None:
    """Refuse a directory that another process holds, writing nothing; any number of ranks may ask at once.

    Not for a process that holds the lock itself: the kernel takes it back when any file on it is closed.

    Raises:
        OutputError: another process holds it, or the file system has no locks.
    """
    if path.exists():
        with path.open(encoding="utf-8") as file:
            _lock(file, path.parent.parent, fcntl.LOCK_SH)


def _lock(file: IO[str], output_dir: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, as the system likes
        raise OutputError(
            f"output_dir: {str(output_dir)!r} is in use by another run ({_holder(file)}); wait for it or end it, or "
            "set another output_dir."
        ) from error
    except OSError as error:
        raise OutputError(
            f"output_dir: {str(output_dir)!r} cannot be locked ({error}), so two runs could spoil each other there; "
            "set an output_dir on a file system with locks (Lustre: mount with -o flock)."
        ) from error


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said which"
