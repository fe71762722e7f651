"""What the host logged while a step trained, kept when its checkpoints are gone: for the curves of the report alone."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugin.plan import StepPlan
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.ledger import StepRecord
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import read_stored, write_stored
from sdpo_plugin.schema import STRICT

SCHEMA_VERSION = 1
Entry = dict[str, float]
"""Numbers that the host logged together, by name; "step" is the number of updates made in the step."""


@dataclass(frozen=True)
class History:
    """The log of one step, from its first update, over all the processes that trained it.

    Attributes:
        entries: in the order in which they were logged.
    """

    __pydantic_config__ = STRICT

    entries: tuple[Entry, ...]


def save_history(run: RunDir, step: StepPlan, logged: Iterable[Mapping[str, Any]]) -> None:
    """Write what was logged in a step, atomically; of each entry what is a finite number.

    Args:
        run: the run directory.
        step: t.
        logged: the host's entries.

    Raises:
        OutputError: it could not be written.
    """
    entries = tuple({key: value for key, value in entry.items() if _is_finite(value)} for entry in logged)
    with explaining_write_errors(run.history(step)):
        write_stored(run.history(step), History(entries), SCHEMA_VERSION)


class ReadableHistories:
    """The histories of a run as far as they can be read, for its report.

    Attributes:
        missed: a line on each that cannot be read, of a step that is trained.
    """

    def __init__(self, run: RunDir) -> None:
        self.missed: list[str] = []
        self._run = run

    def read(self, step: StepPlan, record: StepRecord) -> tuple[Entry, ...] | None:
        """What was logged in a step; None where it is not trained, or its history is missing, damaged or another's."""
        if record.num_optimizer_steps is None:
            return None
        path = self._run.history(step)
        try:
            entries = read_stored(path, History, SCHEMA_VERSION)[0].entries
            _require_updates(entries, record.num_optimizer_steps)
        except (OSError, ValueError) as error:
            self.missed.append(f"{self._run.key(path)} cannot be used, so its curve is missing here: {error}")
            return None
        return entries


def _require_updates(entries: Iterable[Entry], made: int) -> None:
    last = max((entry.get("step", 0.0) for entry in entries), default=0.0)
    if last > made:
        raise ValueError(f"it has update {last:g}, and the step has made {made}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
