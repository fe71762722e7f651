"""Training one step: its data, arguments and start, and what came of it."""

import math
from functools import partial
from typing import TYPE_CHECKING

from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from transformers.trainer_utils import TrainOutput

from sdpo_plugin.errors import TrainingError
from sdpo_plugin.host.data.columns import concatenate, with_reference, with_row_numbers
from sdpo_plugin.host.data.layout import Layout, StepData, describe_row
from sdpo_plugin.host.engines.engine import release
from sdpo_plugin.host.forward.passes import Passes
from sdpo_plugin.host.moving_reference import MovingReference
from sdpo_plugin.host.refreshing import leaving
from sdpo_plugin.host.step_under_way import EvaluationLeft, StepUnderWay
from sdpo_plugin.host.stopping import Stopped
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.step_host import Training, TrainOutcome

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


def train_policy(
    trainer: "StepwiseDPOTrainer",
    step: StepPlan,
    training: Training,
    layout: Layout,
    args: AxolotlDPOConfig,
    passes: Passes,
) -> tuple[TrainOutcome, TrainOutput]:
    """Train the policy on D_t; the outcome for the ledger, and the host's own.

    Args:
        trainer: holds the policy.
        step: t.
        training: what it is trained with.
        layout: of the run.
        args: training arguments of the step.
        passes: fill tables, and know whether the run has been asked to stop.

    Raises:
        TrainingError: a loss is not finite.
        StartGateError: the step did not begin at its reference.
        Stopped: the run was asked to stop.
    """
    release(trainer)
    data = layout.data(step)
    moving = _moving(step, training, data, args, passes)
    train = with_row_numbers(data.train) if moving else with_reference(data.train, training.reference)
    heldout = concatenate([with_reference(rows, training.heldout[name]) for name, rows in data.heldout.items()])
    under_way = StepUnderWay.begin(
        step,
        training,
        passes.stop,
        partial(describe_row, trainer.processing_class, step, data),
        updates_before=sum(earlier.num_optimizer_steps for earlier in layout.plan.steps[: step.index - 1]),
        num_steps=len(layout.plan.steps),
        moving=moving,
    )
    try:
        output = trainer.run_host_training(under_way, args, train, heldout)
    except EvaluationLeft as left:  # at the start, or once more where a checkpoint is resumed
        where = "begins again" if training.checkpoint is None else f"resumes {training.checkpoint}"
        raise Stopped(
            left.signum, f"an evaluation under way will be made again, and step {step.name} {where}"
        ) from None
    return _outcome(trainer, under_way, output), output


def _moving(
    step: StepPlan, training: Training, data: StepData, args: AxolotlDPOConfig, passes: Passes
) -> MovingReference | None:
    """The reference of a step as it begins, where it will move."""
    if step.refresh is None:
        return None
    fill = partial(passes.refreshed_table, step, data, leaving(passes.stop.agreed))
    return MovingReference(step.refresh, args.max_steps, data.facts, training.reference, fill)


def _outcome(trainer: "StepwiseDPOTrainer", step: StepUnderWay, output: TrainOutput) -> TrainOutcome:
    assert step.first_loss is not None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final_loss = losses[-1] if losses else output.training_loss
    if not math.isfinite(final_loss):
        raise TrainingError(
            f"step {step.plan.name} ended with loss {final_loss}; its model is not exported. Set a lower "
            "learning_rate, or train in bf16 or fp32 instead of fp16."
        )
    moving, updates = step.moving, trainer.state.global_step
    return TrainOutcome(
        step.first_loss,
        final_loss,
        updates,
        step.earlier_seconds,
        trainer.beta,
        refreshes=() if moving is None else tuple(moving.refreshes),
        refresh_seconds=None if moving is None else moving.seconds,
    )
