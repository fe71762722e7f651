"""The end of a run for a reason that this package knows: one message, not a traceback per rank."""

import logging
import os
import re
import sys
import time
from types import TracebackType

from sdpo_plugin.errors import SDPOError
from sdpo_plugin.scrub import without_credentials

# Long enough for rank 0, which may still be importing, to meet the same error and say it first.
SECONDS_FOR_RANK_0 = 20.0
# Long enough for the rank that failed to say why, and for the launcher to end this one.
SECONDS_FOR_THE_CAUSE = 5.0
# What gloo and NCCL say when the other side of a collective is gone. Other errors of NCCL's are causes themselves.
PEER_IS_GONE = re.compile(r"closed by peer|reset by peer|broken pipe|ncclRemoteError", re.IGNORECASE)


_last_line: list[str] = []  # what to do about a run that has begun


def say_last(line: str | None) -> None:
    """Whatever ends this process from now on, let this be the last line of rank 0; None: nothing."""
    _last_line[:] = [] if line is None else [line]


def install() -> None:
    """Let errors of this package end the process with their message alone. Idempotent."""
    if not hasattr(_say_it_once, "previous"):  # once: another library's hook may have wrapped ours since
        _say_it_once.previous = sys.excepthook  # type: ignore[attr-defined]
        sys.excepthook = _say_it_once


def uninstall() -> None:
    """Put the earlier hook back."""
    if sys.excepthook is _say_it_once:
        sys.excepthook = _say_it_once.previous  # type: ignore[attr-defined]
        del _say_it_once.previous  # type: ignore[attr-defined]


def _say_it_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say why the process ends, and on rank 0 how to go on."""
    _say_why(kind, error, trace)
    if _last_line and int(os.environ.get("RANK") or "0") == 0:
        print(lines(_last_line[0]), file=sys.stderr, flush=True)


def _say_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the message on rank 0. Another rank waits for its launcher to end it, and speaks only if it was alone."""
    debug = logging.getLogger("axolotl").isEnabledFor(logging.DEBUG)
    if _is_consequence(error) and not debug:
        time.sleep(SECONDS_FOR_THE_CAUSE)
        print(f"\n{lines(_lost_peer(kind, error))}", file=sys.stderr, flush=True)
        return
    if not isinstance(error, SDPOError):
        _say_it_once.previous(kind, error, trace)  # type: ignore[attr-defined]
        return
    rank = int(os.environ.get("RANK") or "0")
    if rank != 0:
        time.sleep(SECONDS_FOR_RANK_0)
    if debug:
        _say_it_once.previous(kind, error, trace)  # type: ignore[attr-defined]
        return
    where = "" if rank == 0 else f" on rank {rank}"
    print(f"\n{kind.__name__}{where}\n{lines(str(error))}", file=sys.stderr, flush=True)


def lines(message: str) -> str:
    """A message as this package says it: with its name before every line."""
    return "\n".join(f"sdpo_plugin: {line}" for line in without_credentials(message).splitlines())


def _lost_peer(kind: type[BaseException], error: BaseException) -> str:
    """One line of a rank that lost another one; where no rank knows more, it is all that there is to read."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = said[0]
    if not PEER_IS_GONE.search(first):  # NCCL says on a line of its own what it met
        first = f"{first} … {next(line for line in said if PEER_IS_GONE.search(line))}"
    return (
        f"rank {os.environ.get('RANK') or '0'} ends because another rank did: {kind.__name__}: {first} "
        "(the cause is what another rank says; if each rank says this, then the network between the ranks failed, "
        "or one was killed, e.g. out of memory: look at dmesg and at the launcher's log)"
    )


def _is_consequence(error: BaseException) -> bool:
    """Whether this rank only met the end of another one, whose own message says more than a traceback from here."""
    ranks = int(os.environ.get("WORLD_SIZE") or "1")
    return ranks > 1 and isinstance(error, RuntimeError) and bool(PEER_IS_GONE.search(str(error)))
