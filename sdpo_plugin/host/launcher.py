"""The processes that launched this one: a run whose launcher is gone has nobody left to end it, and stops by itself."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# A program of this name, or a module run with `python -m`; arguments are separated by null bytes.
LAUNCHER = re.compile(
    rb"(^|[/\0])(accelerate(-launch)?|torchrun|deepspeed|axolotl)\0"
    rb"|\0(accelerate\.commands|torch\.distributed\.(run|launch)|deepspeed\.launcher|axolotl\.cli)"
)


@dataclass(frozen=True)
class Launcher:
    """A process above this one. Its start time tells it from a later process with the same number."""

    pid: int
    start_time: str
    name: str

    def is_alive(self) -> bool:
        """Whether it still runs; a dead one that nobody has waited for does not."""
        found = _stat(self.pid)
        return found is not None and found.start_time == self.start_time and found.state not in "ZX"


@functools.cache
def launchers() -> tuple[Launcher, ...]:
    """The launchers above this process, nearest first, as they were when this was asked first.

    None where a user or a shell has started it: that may end, as under nohup, without meaning anything. None either
    where there is no /proc.
    """
    found = []
    pid = os.getppid()
    while (stat := _stat(pid)) is not None and LAUNCHER.search(command := _command(pid)):
        match = LAUNCHER.search(command)
        assert match is not None
        found.append(Launcher(pid, stat.start_time, match.group().strip(b"/\0").decode()))
        pid = stat.parent
    return tuple(found)


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start_time: str


def _stat(pid: int) -> _Stat | None:
    """State, parent and start time of a process, from proc_pid_stat(5). The name in brackets may hold anything."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(fields[0], int(fields[1]), fields[19])


def _command(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
