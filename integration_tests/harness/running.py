"""A run under way, watched from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from integration_tests.harness.results import Result

GRACE = 5.0
TIMEOUT = 300.0


class Running:
    """A run under way: one process a rank, each the leader of its own group."""

    def __init__(
        self, args: Sequence[str], pids: Sequence[int], logs: Sequence[Path], ended: Callable[[], dict[int, int]]
    ) -> None:
        """Watch processes whose exit statuses `ended()` returns."""
        self.args, self.pids, self.logs = tuple(args), tuple(pids), tuple(logs)
        self._ended = ended
        self._start = time.monotonic()

    def codes(self) -> dict[int, int]:
        """The exit status of every rank that has ended, by process id, in the order of ending."""
        return {pid: code for pid, code in self._ended().items() if pid in self.pids}

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to every rank still there and to what it has started."""
        for pid in set(self.pids) - set(self.codes()):
            try:
                os.killpg(pid, signum)
            except ProcessLookupError:
                continue

    def wait_for(self, seen: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
        """Wait until `seen()` or the run's end; for a test that kills a run at a known point."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if seen():
                return True
            if len(self.codes()) == len(self.pids):
                return seen()
            time.sleep(0.01)
        return False

    def says(self, words: str) -> bool:
        """Whether rank 0's log has these words by now."""
        return self.logs[0].exists() and words in self.logs[0].read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = TIMEOUT, grace: float = GRACE) -> Result:
        """Wait for every rank; a failed rank ends the others after `grace`, the timeout ends all."""
        deadline, timed_out = self._start + timeout, False
        while len(codes := self.codes()) < len(self.pids):
            now = time.monotonic()
            if any(codes.values()):
                deadline = min(deadline, now + grace)
                grace = float("inf")
            if now > deadline:
                timed_out = not any(codes.values())
                self.kill()
                deadline = float("inf")
            time.sleep(0.01)
        seconds = time.monotonic() - self._start
        code = next((value for value in codes.values() if value), 0)
        return Result(self.args, code, seconds, self.logs, timed_out)
