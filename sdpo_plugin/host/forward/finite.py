"""Losses and weights that are not finite: they stop the run, by name, before they can spoil a model."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sdpo_plugin.errors import TrainingError
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.weights import owned, trainable
from sdpo_plugin.host.forward.log_probs import policy_log_probs
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

SHOWN_ROWS = 5
REMEDY = "set a lower learning_rate, train in bf16 or fp32 instead of fp16, or take these rows out"


def require_finite_loss(
    trainer: "DPOTrainer",
    model: torch.nn.Module,
    loss: torch.Tensor,
    inputs: Mapping[str, Any],
    reference: LogProbTable,
    name_row: Callable[[int], str],
) -> None:
    """Stop on every rank where the loss of a batch is not finite on one of them, before its gradient is taken.

    Args:
        trainer: knows the ranks.
        model: as the loss was computed with.
        loss: of this rank's batch.
        inputs: the batch, with the reference log-probs by which its rows are found again.
        reference: the table of D_t.
        name_row: says which row of D_t one is.

    Raises:
        TrainingError: it names the rows.
    """
    losses = trainer.accelerator.gather(loss.detach().float().reshape(1))
    if bool(torch.isfinite(losses).all()):
        return
    finite = torch.isfinite(policy_log_probs(trainer, model, inputs)).all(dim=0)
    mine = [] if bool(torch.isfinite(loss)) else torch.nonzero(~finite).flatten().tolist() or range(len(finite))
    names = ranks.gather([_name(inputs, number, reference, name_row) for number in mine])
    shown = "\n".join(f"  {name}" for name in names[:SHOWN_ROWS])
    more = f"\n  and {len(names) - SHOWN_ROWS} more" if len(names) > SHOWN_ROWS else ""
    raise TrainingError(
        f"the loss of update {trainer.state.global_step + 1:,} is {_worst(losses)}; the model is as the update before "
        f"left it. Rows of that batch:\n{shown}{more}\nTo resume, {REMEDY}."
    )


def require_finite_weights(trainer: "DPOTrainer", what: str) -> None:
    """Refuse to write a model that a gradient without bounds has spoilt.

    Raises:
        TrainingError: a trainable weight is not finite, on whichever rank.
    """
    shards = [(name, owned(parameter)) for name, parameter in trainable(trainer.model)]
    bad = [name for name, shard in shards if shard.is_floating_point() and not bool(torch.isfinite(shard).all())]
    names = sorted(set(ranks.gather(bad)))
    if names:
        raise TrainingError(
            f"{what} is not written: {len(names)} weights hold values that are not finite, e.g. {names[0]}. "
            "Set a lower learning_rate, or train in bf16 or fp32 instead of fp16; what was written before is whole."
        )


def _name(inputs: Mapping[str, Any], number: int, reference: LogProbTable, name_row: Callable[[int], str]) -> str:
    """The row of D_t that is number ``number`` of the batch: the one with these reference log-probs."""
    chosen, rejected = (inputs[f"ref_{side}_logps"][number].item() for side in ("chosen", "rejected"))
    found = np.flatnonzero((reference.chosen == np.float32(chosen)) & (reference.rejected == np.float32(rejected)))
    return " or ".join(name_row(int(row)) for row in found[:2]) or "a row that the table does not hold"


def _worst(losses: torch.Tensor) -> float:
    return float(losses[~torch.isfinite(losses)][0])
