"""The one place where an error of any kind is no end: benchmarks run other people's code, and must not cost a run."""

from collections.abc import Callable
from typing import TypeVar

from sdpo_plugin.host.stopping import Stopped
from sdpo_plugin.scrub import without_credentials

T = TypeVar("T")
SHOWN_LETTERS = 500


class AttemptFailedError(Exception):
    """An attempt has failed, here or on another rank; the message is its error as ``attempt`` gave it."""


def attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result of ``action`` and None, or None and its error, in one line.

    Raises:
        Stopped: the run was asked to stop.
    """
    try:
        return action(), None
    except Stopped:
        raise
    except AttemptFailedError as failed:
        return None, str(failed)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the module's first line says why)
        text = without_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
        return None, text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"
