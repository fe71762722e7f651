"""How far the step under way has come: a small file that is written while it trains, and that nothing relies on."""

from dataclasses import asdict, dataclass
from functools import cache

from pydantic import TypeAdapter, ValidationError

from sdpo_plugin.run_dir.files import write_json
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.schema import STRICT, Count


@dataclass(frozen=True)
class Progress:
    """A step under way.

    Attributes:
        step: t.
        update: updates made.
        num_updates: updates of the step.
        seconds_per_update: in this process; None before the second update.
        at: when this was written, in seconds since 1970.
    """

    __pydantic_config__ = STRICT

    step: Count
    update: Count
    num_updates: Count
    seconds_per_update: float | None
    at: float


def write_progress(run: RunDir, progress: Progress) -> None:
    """Tell of the step under way.

    Raises:
        OSError: it could not be written.
    """
    write_json(run.progress, asdict(progress))


def read_progress(run: RunDir) -> Progress | None:
    """What ``write_progress`` wrote last; None where it is missing or damaged: it only tells."""
    try:
        return _adapter().validate_json(run.progress.read_bytes())
    except (OSError, ValidationError):
        return None


@cache
def _adapter() -> TypeAdapter[Progress]:
    return TypeAdapter(Progress)
