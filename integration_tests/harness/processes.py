"""Which processes a run has left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def in_sessions(sessions: Iterable[int]) -> dict[int, str]:
    """The living processes of these sessions, with their command lines. Every run is a session of its own."""
    wanted, found = set(sessions), {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) in wanted and fields[0] not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def left_running(sessions: Iterable[int], seconds: float = 3.0) -> dict[int, str]:
    """What still runs of these sessions when their leaders have ended: workers notice within a second or two."""
    wanted, deadline = list(sessions), time.monotonic() + seconds
    while (found := in_sessions(wanted)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def child_of(pid: int, seconds: float = 60.0) -> int:
    """The first child that a process starts."""
    deadline = time.monotonic() + seconds
    path = Path(f"/proc/{pid}/task/{pid}/children")
    while time.monotonic() < deadline:
        children = path.read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} has no child; this is {os.getpid()}")
