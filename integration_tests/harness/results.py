"""The result of a run of the host: exit codes and logs, in a form that tests can use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TAIL = 6000


class RunFailedError(AssertionError):
    """A run ended otherwise than the test needs; the message carries the end of its log."""


@dataclass(frozen=True)
class Result:
    """One finished run. `returncode` is negative for a signal; with several ranks it is that of the first to fail."""

    args: tuple[str, ...]
    returncode: int
    seconds: float
    logs: tuple[Path, ...]
    timed_out: bool = False

    def log(self, rank: int = 0) -> str:
        """Everything that rank wrote to stdout and stderr."""
        return self.logs[rank].read_text(encoding="utf-8", errors="replace")

    @property
    def log_text(self) -> str:
        """The log of rank 0, followed by those of the other ranks."""
        return "\n".join(self.log(rank) for rank in range(len(self.logs)))

    def check(self) -> Result:
        """Return self, or raise with the end of every rank's log."""
        if self.returncode == 0 and not self.timed_out:
            return self
        how = "ran out of time" if self.timed_out else f"ended with {self.returncode}"
        tails = "\n".join(f"--- rank {rank}: {path}\n{self.log(rank)[-TAIL:]}" for rank, path in enumerate(self.logs))
        raise RunFailedError(f"{' '.join(self.args)} {how} after {self.seconds:.1f} s\n{tails}")
