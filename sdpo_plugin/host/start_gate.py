"""Every loss of a step, before its gradient is taken: finite, and ln 2 where policy and reference are one model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sdpo_plugin import gate
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.engine import require_shared_gradients
from sdpo_plugin.host.forward.finite import require_finite_loss
from sdpo_plugin.host.forward.packing import longest_row
from sdpo_plugin.host.forward.precision import is_half_precision
from sdpo_plugin.host.step_under_way import StepUnderWay

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

Inputs = Mapping[str, Any]


def check_loss(
    trainer: "StepwiseDPOTrainer", step: StepUnderWay, model: torch.nn.Module, loss: torch.Tensor, inputs: Inputs
) -> None:
    """Refuse a loss that is not finite. Note the first one of a step, and check it, and the first after a refresh.

    Args:
        trainer: whose training it is.
        step: under way; every batch of it comes here.
        model: as it trains.
        loss: of the batch, on this rank.
        inputs: the batch.

    Raises:
        TrainingError: a loss is not finite.
        StartGateError: the step did not begin, or go on, at its reference.
        UnsupportedHostError: the ranks share no gradients.
    """
    require_finite_loss(trainer, model, loss, inputs, step.reference, step.name_row)
    moving, update = step.moving, trainer.state.global_step
    if step.first_loss is None:
        require_shared_gradients(trainer, model)
        step.first_loss = _over_ranks(trainer, loss)
        if step.plan.starts_at_reference:  # else the margins say how far policy and reference are apart
            _check(trainer, step, step.first_loss, inputs, None)
    elif moving is not None and moving.must_be_checked(update):
        _check(trainer, step, _over_ranks(trainer, loss), inputs, update)


def _over_ranks(trainer: "StepwiseDPOTrainer", loss: torch.Tensor) -> float:
    return float(trainer.accelerator.gather(loss.detach().float().reshape(1)).mean())


def _check(
    trainer: "StepwiseDPOTrainer", step: StepUnderWay, loss: float, inputs: Inputs, refreshed_at: int | None
) -> None:
    plain = not trainer.use_weighting and not trainer.aux_loss_enabled
    gate.check_start(
        step=step.plan.name,
        loss=loss,
        margin=trainer._metrics["train"]["rewards/margins"][-1],
        beta=trainer.beta,
        tolerance=gate.tolerance_nats(is_half_precision(trainer), ranks.largest(longest_row(inputs))),
        expected=gate.start_loss(trainer.loss_types, trainer.loss_weights, trainer.beta, trainer.label_smoothing)
        if plain
        else None,
        refreshed_at=refreshed_at,
    )
