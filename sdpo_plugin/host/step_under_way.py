"""The step that is being trained: everything that begins and ends with it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpo_plugin.host.moving_reference import MovingReference
from sdpo_plugin.host.stopping import StopRequest
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.run_dir.sealed import read_seal
from sdpo_plugin.step_host import Training
from sdpo_plugin.tables import LogProbTable


class EvaluationLeft(Exception):  # noqa: N818 - no error: the evaluation is made when the run is resumed
    """An evaluation was left in the middle, because the run was asked to stop: it may take longer than a launcher
    waits before it kills."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass
class StepUnderWay:
    """One step while it trains, on this rank.

    Attributes:
        plan: of the step.
        training: what it is trained with.
        stop: whether the run has been asked to stop.
        name_row: says which row of D_t one is.
        updates_before: updates of the steps before it.
        num_steps: T.
        first_loss: mean loss of its first batch in nats; None before that.
        earlier_seconds: that went into it before it was resumed.
        is_over: the checkpoint that it is resumed from was written when it had come to its end.
        owed: an evaluation that was left, and whether a checkpoint is due after it.
        stopped_by: signal that every rank has agreed to stop for; 0: none.
        moving: its reference, where it moves within the step.
        last_update: the last update after which it was looked at whether a refresh is due.
        save_was_due: whether a checkpoint was due where the run was asked to stop, without that.
        began: when this process began with it.
    """

    plan: StepPlan
    training: Training
    stop: StopRequest
    name_row: Callable[[int], str]
    updates_before: int
    num_steps: int
    first_loss: float | None = None
    earlier_seconds: float = 0.0
    is_over: bool = False
    owed: Mapping[str, bool] | None = None
    stopped_by: int = 0
    save_was_due: bool = False
    moving: MovingReference | None = None
    last_update: int = 0
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(
        cls,
        plan: StepPlan,
        training: Training,
        stop: StopRequest,
        name_row: Callable[[int], str],
        updates_before: int,
        num_steps: int,
        moving: MovingReference | None = None,
    ) -> "StepUnderWay":
        """A step from its start, or with what the checkpoint says of it that it is resumed from."""
        facts = {} if training.checkpoint is None else read_seal(training.checkpoint).facts
        if moving is not None and training.checkpoint is not None:
            moving.resume(training.checkpoint, facts["moving"])
        return cls(
            plan,
            training,
            stop,
            name_row,
            updates_before,
            num_steps,
            first_loss=facts.get("first_loss"),
            earlier_seconds=facts.get("seconds", 0.0),
            is_over=facts.get("is_over", False),
            owed=facts.get("owed"),
            moving=moving,
        )

    @property
    def reference(self) -> LogProbTable:
        """The table that its batches are given."""
        return self.training.reference if self.moving is None else self.moving.table

    def facts(self, *, is_over: bool) -> dict[str, Any]:
        """Facts for the seal of a checkpoint, which ``begin`` reads."""
        return {
            **({} if self.moving is None else {"moving": self.moving.kept()}),
            "first_loss": self.first_loss,
            "seconds": self.earlier_seconds + time.perf_counter() - self.began,
            "is_over": is_over,
            "owed": None if self.owed is None else dict(self.owed),
        }

    def leave_evaluation_if_asked(self) -> None:
        """Called by every rank before every batch of an evaluation.

        Raises:
            EvaluationLeft: the run has been asked to stop.
        """
        signum = self.stopped_by or self.stop.agreed()
        if signum:
            raise EvaluationLeft(signum)
