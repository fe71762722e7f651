"""The processes that a run has left behind.

A run forked from the warm process is a session of its own. One that a launcher has started is found by a mark in its
environment: torchrun's ranks are sessions of their own, and no parent leads to an orphan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "SDPO_TEST_RUN"
Found = dict[int, str]


def left_running(find: Callable[[], Found], seconds: float = 15.0) -> Found:
    """The processes that outlive those that were waited for: workers notice within seconds, one after the other."""
    deadline = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def in_sessions(*sessions: int) -> Found:
    """The living processes of these sessions, with their command lines."""
    return {pid: _command(pid) for pid, stat in _living() if int(stat[3]) in sessions}


def marked(mark: str) -> Found:
    """The living processes that were started with `SDPO_TEST_RUN=mark`, and the forks of those."""
    wanted = f"{MARK}={mark}".encode()
    return {pid: _command(pid) for pid, _ in _living() if wanted in _read(pid, "environ").split(b"\0")}


def _living() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        stat = _read(int(folder.name), "stat") if folder.name.isdigit() else b""
        fields = stat.decode(errors="replace").rpartition(")")[2].split()
        if fields and fields[0] not in "ZX":
            yield int(folder.name), fields


def _command(pid: int) -> str:
    return _read(pid, "cmdline").decode(errors="replace").replace("\0", " ")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
