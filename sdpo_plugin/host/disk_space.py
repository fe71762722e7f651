"""The disk space that is left to be written, by the model in memory and the host's save options."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from sdpo_plugin.host.engines.weights import whole_size
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.run_dir.checkpoints import checkpoints
from sdpo_plugin.run_dir.disk import DiskNeed, kept_checkpoints, models_at_once

OPTIMIZER_STATES = 2  # of Adam and its kin, each as large as what is trained
NO_STATES = ("sgd", "rmsprop", "adagrad", "adafactor", "lion", "muon", "8bit", "4bit", "galore", "apollo", "lomo")


def disk_need(
    trainer: Trainer, left: Sequence[tuple[StepPlan, TrainingArguments]], export_steps: str, *, has_begun: bool
) -> DiskNeed:
    """The least that is still to be written.

    Args:
        trainer: holds the model.
        left: the steps that are not exported yet, each with its training arguments.
        export_steps: "all" or "last".
        has_begun: whether M_0's adapter, where there is one, is on disk already.
    """
    parameters = list(trainer.model.parameters())
    trained = sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad)
    has_adapter = any(not parameter.requires_grad for parameter in parameters)
    model = trained if has_adapter else sum(_bytes(parameter) for parameter in parameters)
    states = 0 if any(part in str(trainer.args.optim).lower() for part in NO_STATES) else OPTIMIZER_STATES
    optimizer = 0 if trainer.args.save_only_model else states * trained
    count = 0
    for step, args in left:
        kept = kept_checkpoints(step.num_optimizer_steps, _every(step.num_optimizer_steps, args), args.save_total_limit)
        count += max(0, kept - len(checkpoints(Path(args.output_dir))))  # of a half-trained step some are there already
    models = models_at_once(len(left), export_steps) + (has_adapter and not has_begun)
    return DiskNeed(models, model, count, model + optimizer)


def _every(num_updates: int, args: TrainingArguments) -> int | None:
    """Updates between two checkpoints of a step; None where none is written."""
    if args.save_strategy == SaveStrategy.STEPS:
        return max(1, int(args.save_steps if args.save_steps >= 1 else num_updates * args.save_steps))
    return num_updates if args.save_strategy == SaveStrategy.EPOCH else None  # an epoch at least


def _bytes(parameter: torch.nn.Parameter) -> int:
    return int(math.prod(whole_size(parameter)) * parameter.element_size())
