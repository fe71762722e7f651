"""One callback that reports to a logger, and what the chain asks of it beside the host's events."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from axolotl.utils.dict import DictDefault
from transformers import TrainerCallback

LOG = logging.getLogger("axolotl.sdpo_plugin")
T = TypeVar("T")
Value = float | int | str | None
Rows = Sequence[Sequence[Value]]


@dataclass(frozen=True)
class Chain:
    """The chain that is logged, as this process finds it.

    Attributes:
        cfg: the host's config.
        root: the run directory.
        begins_at: updates since M_0 that were made before this process; points at later ones may have been logged by
            a process that died, and are logged again.
    """

    cfg: DictDefault
    root: Path
    begins_at: int


class Logger:
    """A callback that reports, without anything that is known of its library.

    Attributes:
        name: of the logger, in `sdpo/loggers.json` and in messages.
        callback: transformers', or the host's.
    """

    name: ClassVar[str] = ""

    def __init__(self, callback: TrainerCallback, chain: Chain) -> None:
        self.callback, self.chain = callback, chain
        self._told: set[str] = set()

    def args(self, args: Any) -> Any:
        """The training arguments that the callback sees, in which its own run name is set. A copy, or ``args``."""
        return args

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Called on rank 0 before the run of the logger begins; what the environment must say while it does.

        Args:
            kept: what ``identity`` gave in an earlier process; empty where there is nothing to go on with.
            processes: that have logged before this one.
        """
        return {}

    def begun(self, kept: Mapping[str, str], processes: int) -> None:
        """Called on rank 0 when its run has begun, or goes on."""

    def identity(self) -> dict[str, str]:
        """What the run is known by, for a later process."""
        return {}

    def has(self, key: str, update: int) -> bool:
        """Whether a process that died has logged this key at this update, or at a later one."""
        return False

    def parameters(self, values: Mapping[str, Value]) -> None:
        """Add to the parameters of the run, once."""

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """Log a table; nothing where the logger has none."""

    def image(self, name: str, path: Path, update: int) -> None:
        """Log a picture; nothing where the logger has none."""

    def interrupted(self, *, failed: bool, end: Callable[[], Any]) -> None:
        """The process ends before the chain: it was asked to stop, or failed.

        Args:
            failed: it failed.
            end: the callback's ``on_train_end``.
        """
        if not failed:
            end()

    def harmless(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """``action``, or ``otherwise`` where it fails: what a logger cannot take is missing there, and no training ends
        for it. Each kind of failure is said once."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - another's library, at work beside a training that has taken days
            if what not in self._told:
                self._told.add(what)
                LOG.warning(
                    "%s: %s failed (%s: %s). The training goes on; what the logger could not take is missing there.",
                    *(self.name or type(self.callback).__name__, what, type(error).__name__, error),
                )
            return otherwise
