"""One run a directory: a lock that the kernel takes back when its process ends, however it ends."""

import fcntl
import json
import os
import socket
import stat
from pathlib import Path
from typing import IO

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.files import require_no_link


class RunLock:
    """Holds a run directory for this process.

    A POSIX record lock: it is not inherited by worker processes, so that none of them can outlive its run and keep
    it, and NFS and the cluster file systems that have locks at all keep it across machines.

    Raises:
        OutputError: another process holds it, the file system has no locks, or something else stands in its place.
    """

    def __init__(self, path: Path) -> None:
        require_no_link(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = _open(path)
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


def _open(path: Path) -> IO[str]:
    """Open the lock file, and nothing else: what it holds is overwritten."""
    require_no_link(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no file, and the run's lock has to stand there; remove it.")
    # The flags hold what was just looked at: a link is not followed, and a pipe is not waited for.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise OutputError(
            f"{path} is one file with another ({found.st_nlink} hard links), which the run's lock would overwrite; "
            "delete this name of it."
        )
    return os.fdopen(handle, "a+", encoding="utf-8")


def require_free(path: Path) -> None:
    """Refuse a directory that another process holds, writing nothing; any number of ranks may ask at once.

    Not for a process that holds the lock itself: the kernel takes it back when any file on it is closed.

    Raises:
        OutputError: another process holds it, or the file system has no locks.
    """
    if path.exists():
        require_no_link(path)
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
