"""What can be known to go wrong before hours are spent: the output directory, the disk, the vocabulary."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from sdpo_plugin.disk import DiskNeed, kept_checkpoints, models_at_once
from sdpo_plugin.errors import DataError, OutputError
from sdpo_plugin.files import existing_part
from sdpo_plugin.host.datasets import IDS, StepData
from sdpo_plugin.host.weights import whole_size
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.resume import checkpoints

OPTIMIZER_STATES = 2  # of Adam and its kin, each as large as what is trained
NO_STATES = ("sgd", "rmsprop", "adagrad", "adafactor", "lion", "muon", "8bit", "4bit", "galore", "apollo", "lomo")


def check_output_dir(output_dir: Path) -> None:
    """Refuse a directory that cannot be made or written to. Touches nothing.

    Raises:
        OutputError: a part of its path is a file, or may not be written to; or it is no path at all.
    """
    try:
        existing = existing_part(output_dir)
    except (OSError, ValueError) as error:  # too long a name, or a null byte in it
        raise OutputError(
            f"output_dir: {str(output_dir)!r} cannot be a directory: {error}; set another output_dir."
        ) from error
    if not existing.is_dir():
        raise OutputError(f"output_dir: {str(output_dir)!r}: {existing} is a file; set another output_dir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"output_dir: {str(output_dir)!r}: {existing} may not be written to; change its permissions, or set "
            "another output_dir."
        )


def check_vocabulary(trainer: Trainer, sources: Sequence[StepData], heldout: Mapping[str, Dataset]) -> None:
    """Refuse rows with token ids that the model has no embedding for; on a GPU they end in an assertion of the device.

    Raises:
        DataError: it names the set, the id and the size of the embedding.
    """
    weight = trainer.model.get_input_embeddings().weight
    size = whole_size(weight)[0]
    sets = {source.name: source.train for source in sources} | {
        f"held-out {name}": rows for name, rows in heldout.items()
    }
    for name, rows in sets.items():
        largest = _largest_id(rows)
        if largest >= size:
            raise DataError(
                f"{name}: a row has token id {largest}, and the model has embeddings for {size} tokens: the tokenizer "
                "is larger than the model; set tokenizer_config to the model's own tokenizer, or enlarge the "
                "embeddings (resize_token_embeddings_to_32x: true)."
            )


def disk_need(
    trainer: Trainer, left: Sequence[tuple[StepPlan, TrainingArguments]], export_steps: str, *, has_begun: bool
) -> DiskNeed:
    """What is still to be written, at least.

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


def _largest_id(rows: Dataset) -> int:
    largest = 0
    for batch in rows.select_columns(IDS).with_format("arrow").iter(1000):
        for name in IDS:
            found = pc.max(batch.column(name).combine_chunks().flatten()).as_py()
            largest = max(largest, found or 0)
    return largest
