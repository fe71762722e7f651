"""Faults: a process killed at a numbered operation, from inside or outside, and a full disk."""

import errno
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGES = ("replace", "unlink", "rmdir", "mkdir", "fsync")
NEEDS_SPACE = ("create", "open", "write", "fsync", "replace", "mkdir")


@contextmanager
def before_each_operation(tick: Callable[[str], None]) -> Iterator[None]:
    """Call ``tick`` with its name before each operation that changes the disk, ``shutil.rmtree``'s own among them."""
    real_open, real_create = io.open, os.open

    def noting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            tick(name)
            return real(*args, **kwargs)

        return operation

    def noting_create(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            tick("create")
        return real_create(path, flags, *args, **kwargs)

    def noting_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **kwargs)
        if not isinstance(file, int):  # else it has been created already
            tick("open")
        return TappedFile(real_open(file, mode, *args, **kwargs), tick)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, noting(name))
        patch.setattr(os, "open", noting_create)
        patch.setattr(io, "open", noting_open)
        yield


class TappedFile:
    """A file that calls ``tick`` before each write."""

    def __init__(self, file: Any, tick: Callable[[str], None]) -> None:
        self._file, self._tick = file, tick

    def write(self, data: Any) -> Any:
        self._tick("write")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "TappedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class Counter:
    """Numbers operations from 1, and acts at one of them.

    Args:
        at: the number; 0 for never.
        act: what happens there.
        counts: which operations have a number; all without it.
    """

    def __init__(
        self, at: int = 0, act: Callable[[], None] = lambda: None, counts: tuple[str, ...] | None = None
    ) -> None:
        self.number = 0
        self._at, self._act, self._counts = at, act, counts

    def __call__(self, name: str) -> None:
        if self._counts is None or name in self._counts:
            self.number += 1
            if self.number == self._at:
                self._act()

    def work(self) -> None:
        """An operation that is the host's own: an update, a pass for log-probs."""
        self("work")


def die() -> None:
    """Kill −9, from inside."""
    os.kill(os.getpid(), signal.SIGKILL)


class FullDisk:
    """A disk on which nothing can be written from one operation on."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, name: str) -> None:
        if name in NEEDS_SPACE:
            self._left -= 1
            if self._left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device", name)


def fork(work: Callable[[], None]) -> int:
    """Start ``work`` in a process of its own; return its id. Exit code 1: it raised."""
    pid = os.fork()
    if pid == 0:
        gc.disable()  # it would touch, and so copy, every page of the parent
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 (whatever it is, this process must not become a second pytest)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def end_of(pid: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
