"""Refreshes of a moving reference between two updates, and what happens where the run is asked to stop meanwhile."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdpo_plugin.host.moving_reference import MovingReference, read_order
from sdpo_plugin.host.stopping import Stopped

if TYPE_CHECKING:
    from sdpo_plugin.host.step_under_way import StepUnderWay
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

LOG = logging.getLogger("axolotl.sdpo_plugin")
DISTANCE = "sdpo/kl_to_reference"  # as loggers have it


class RefreshLeft(Exception):  # noqa: N818 - no error: the refresh is made when the run is resumed
    """A refresh was left in the middle, because the run was asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def leaving(agreed: Callable[[], int]) -> Callable[[], None]:
    """A check for every round of batches of a refresh: every rank asks.

    Args:
        agreed: the signal that one of the ranks was sent, 0 for none.
    """

    def check() -> None:
        signum = agreed()
        if signum:
            raise RefreshLeft(signum)

    return check


def see_order(trainer: "StepwiseDPOTrainer", moving: MovingReference, make_loader: Callable[[], Any]) -> None:
    """Let a moving reference know the order of the rows, from which follow those that are still to come.

    Raises:
        ReferenceTableError: what was kept with the checkpoint is of other rows.
    """
    accumulation = trainer.args.gradient_accumulation_steps
    moving.order_is_known(read_order(make_loader, len(trainer.train_dataset), moving.num_updates, accumulation))


def after_update(trainer: "StepwiseDPOTrainer", step: "StepUnderWay") -> None:
    """Refresh the reference where it is due, before what follows an update: log, evaluation, checkpoint.

    A checkpoint then has the reference that the next update trains with. Where the run is asked to stop, it is written
    without: that a refresh is due follows from what it holds, and the run that resumes makes it first.
    """
    moving, update = step.moving, trainer.state.global_step
    if moving is None or update == step.last_update:  # the host comes here once more when an epoch is over
        return
    step.last_update = update
    if moving.is_watched:
        trainer._metrics["train"][DISTANCE].append(moving.update_is_made())
    if moving.is_due(update) and not step.stopped_by:
        try:
            _refresh(trainer, moving, update)
        except RefreshLeft as left:
            step.stopped_by, step.save_was_due = left.signum, trainer.control.should_save
            trainer.control.should_save = True


def before_updates(trainer: "StepwiseDPOTrainer", step: "StepUnderWay") -> None:
    """Make the refresh that was due where a run was asked to stop.

    Raises:
        Stopped: it is asked again.
    """
    moving, update = step.moving, trainer.state.global_step
    step.last_update = update
    if moving is not None and moving.is_due(update):
        try:
            _refresh(trainer, moving, update)
        except RefreshLeft as left:
            where = f"step {step.plan.name} resumes {step.training.checkpoint}"
            raise Stopped(left.signum, f"the refresh of the reference will be made again, and {where}") from None


def _refresh(trainer: "StepwiseDPOTrainer", moving: MovingReference, update: int) -> None:
    made = moving.refresh(update)
    if trainer.is_world_process_zero():
        seen = "" if made.kl is None else f", {made.kl:.3g} nats from the policy,"
        LOG.info("update %d: the reference%s is refreshed for %d rows to come", update, seen, made.num_rows)
