"""Log-probs of a batch under the policy as it stands or another model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from axolotl.utils.dict import DictDefault

from sdpo_plugin.host.forward.answer_logits import AnswerLogits, ReadLogits, TokenLogits, WholeLogits
from sdpo_plugin.host.forward.attention import packed_row
from sdpo_plugin.host.forward.head import compare_with_head, reading
from sdpo_plugin.host.forward.packing import PACKED, PackingCollator

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why


def packs(trainer: "DPOTrainer") -> bool:
    """Whether the trainer computes packed rows."""
    return isinstance(trainer.data_collator, PackingCollator)


def taking(model: torch.nn.Module, inputs: Mapping[str, Any], *, log_probs_alone: bool = False) -> Any:
    """The model as TRL calls it for this batch: packed batches go through it as one row; logits in half precision, as
    under DeepSpeed and FSDP2, are summed in float32.

    Args:
        model: ready for a forward pass; its attention is that of ``attention.packed_attention`` for packed batches.
        inputs: as a collator makes them.
        log_probs_alone: nothing else is read of the logits.
    """
    return _PackedModel(model, log_probs_alone) if PACKED in inputs else partial(_in_float32, model)


def _in_float32(model: torch.nn.Module, **inputs: Any) -> Any:
    """What accelerate does under autocast. A log-prob of hundreds of nats in bfloat16 has no digit behind the point."""
    outputs = model(**inputs)
    outputs.logits = outputs.logits.float()
    return outputs


class _PackedModel:
    """Takes the place of a model in TRL's code: it is given a packed batch, and shows the logits that TRL reads."""

    def __init__(self, model: torch.nn.Module, log_probs_alone: bool) -> None:
        self._model, self._log_probs_alone = model, log_probs_alone

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        packed_ids: torch.Tensor,
        packed_positions: torch.Tensor,
        packed_places: torch.Tensor,
        packed_labels: torch.Tensor,
        packed_cells: torch.Tensor,
        **kwargs: Any,
    ) -> Any:
        with packed_row(kwargs[PACKED]), reading(packed_labels, self._log_probs_alone) as read:
            outputs = self._model(
                input_ids=packed_ids, position_ids=packed_positions, logits_to_keep=packed_places, **kwargs
            )
        if isinstance(outputs.logits, AnswerLogits):  # made already: what stands for the model gives them once more
            return outputs
        compare_with_head(outputs.logits)
        found = outputs.logits[0]
        if read.columns is not None:
            tokens: TokenLogits = ReadLogits.through(found[:, 0], read.columns)
        else:
            tokens = WholeLogits(found.float(), packed_labels)  # DeepSpeed and FSDP2 give them in half precision
        rows, width = input_ids.shape[0], input_ids.shape[1] - 1
        num_chosen = sum(pair.chosen for pair in kwargs[PACKED].pairs)
        outputs.logits = AnswerLogits(tokens, packed_cells, (rows, width), num_chosen)
        return outputs


def with_all_tokens(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch for whoever counts what goes through the model: TRL sees the tokens of answers alone."""
    return {**inputs, "input_ids": inputs["packed_ids"]} if PACKED in inputs else inputs


def compute_as(trainer: "DPOTrainer", max_length: int, ld_alpha: float | None) -> None:
    """Let the trainer compute batches, from here on, as a step with these settings does.

    Args:
        trainer: in a pass or in training.
        max_length: tokens of a prompt with an answer, beyond which the answer is cut.
        ld_alpha: weight of the tokens by which an answer is longer than the other (arXiv 2409.06411); None: as 1.
    """
    trainer.ld_alpha = ld_alpha
    for collator in (trainer.padded_collator, trainer.data_collator):
        collator.max_length = max_length


def compute_as_in(trainer: "DPOTrainer", cfg: DictDefault) -> None:
    """Likewise, as the step of this config does."""
    compute_as(trainer, cfg.sequence_len, cfg.dpo_ld_alpha)


def policy_log_probs(trainer: "DPOTrainer", model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Summed log-probs in nats of a batch of N pairs, shape (2, N): chosen, rejected.

    With the policy as TRL's reference model, TRL's own code computes them with the adapter instead of without it.

    Args:
        trainer: holds the policy.
        model: the policy as it stands, or another model, ready for a forward pass.
        inputs: a batch as the collator makes it.
    """
    return log_probs_by(trainer, taking(model, inputs, log_probs_alone=True), inputs)


def log_probs_by(trainer: "DPOTrainer", called: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The same, by what TRL's code is to call in the place of the model."""
    trainer.ref_model = trainer.model
    try:
        with without_checkpointing(trainer.model):
            return torch.stack(trainer.compute_ref_log_probs(called, inputs))
    finally:
        trainer.ref_model = None


@contextmanager
def without_checkpointing(model: torch.nn.Module) -> Iterator[None]:
    """Within this context no layer of ``model`` would be computed again in a backward pass.

    TRL switches gradient checkpointing off and on again around every batch of a reference, and each time transformers
    puts one more hook on the embeddings, and the host's own settings for it are lost. It leaves alone what is off.
    """
    # Of its own: an adapter's model hands on the attributes of the one within.
    layers = [layer for layer in model.modules() if vars(layer).get("gradient_checkpointing")]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
