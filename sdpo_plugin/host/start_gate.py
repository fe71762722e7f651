"""The first batch of a step through the ln 2 gate, with what the trainer knows of its loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sdpo_plugin import gate
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.forward.packing import longest_row
from sdpo_plugin.host.forward.precision import is_half_precision
from sdpo_plugin.host.step_under_way import StepUnderWay

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


def pass_gate(trainer: "StepwiseDPOTrainer", step: StepUnderWay, loss: torch.Tensor, inputs: Mapping[str, Any]) -> None:
    """Note the first loss of a step, and check it where policy and reference are one model.

    Raises:
        StartGateError: the step did not begin at its reference.
    """
    step.first_loss = float(trainer.accelerator.gather(loss.detach().float().reshape(1)).mean())
    if not step.plan.starts_at_reference:
        return  # the margins of the first batch say how far policy and reference are apart
    plain = not trainer.use_weighting and not trainer.aux_loss_enabled
    gate.check_start(
        step=step.plan.name,
        loss=step.first_loss,
        margin=trainer._metrics["train"]["rewards/margins"][-1],
        beta=trainer.beta,
        tolerance=gate.tolerance_nats(is_half_precision(trainer), ranks.largest(longest_row(inputs))),
        expected=gate.start_loss(trainer.loss_types, trainer.loss_weights, trainer.beta, trainer.label_smoothing)
        if plain
        else None,
    )
