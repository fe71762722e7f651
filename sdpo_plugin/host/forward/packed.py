"""The packed forward pass, where it is exact: chosen by what the trainer is set to, and by trying it."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import DynamoBackend
from axolotl.utils.dict import DictDefault
from peft import PeftModel
from transformers import PreTrainedModel

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.forward.attention import forget_masks, packed_attention, set_packed_attention
from sdpo_plugin.host.forward.experts import balances_packed_rows, balancing_packed_rows
from sdpo_plugin.host.forward.head import read_at_once
from sdpo_plugin.host.forward.log_probs import compute_as_in, packs
from sdpo_plugin.host.forward.packing import PackingCollator
from sdpo_plugin.host.forward.trial import Rows, disagreement
from sdpo_plugin.host.patches import reading_answer_logits

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

LOG = logging.getLogger("axolotl.sdpo_plugin")
# Of transformers' `layer_types` those whose tokens see what a mask says, and nothing else.
ATTENTIONS = {"full_attention", "sliding_attention"}


@contextmanager
def forward_pass(trainer: "DPOTrainer", packed: bool | str, rows: Rows) -> Iterator[None]:
    """Within this context the trainer computes packed rows, or padded ones where packed rows would not be exact.

    Args:
        trainer: its collator is replaced.
        packed: `sdpo.packed`: "auto", True or False.
        rows: of all steps, and held out; the longest of them go through both.

    Raises:
        ConfigError: `packed: true`, and packed rows would not be exact.
    """
    if packed is False:
        yield
        return
    model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    with ExitStack() as stack:
        takes_attention = stack.enter_context(packed_attention(model))
        stack.enter_context(reading_answer_logits())
        stack.enter_context(balancing_packed_rows(model))
        stack.callback(forget_masks)
        stack.callback(read_at_once, model)
        reason = _obstacle(trainer, model, takes_attention)
        reason = reason or disagreement(trainer, rows, model, any_scores=packed is True)
        if reason and packed is True:
            raise ConfigError(f"sdpo.packed: true, but {reason}; set packed: auto, or false.")
        if trainer.accelerator.is_main_process:
            LOG.info("forward pass: padded rows, because %s" if reason else "forward pass: packed rows%s", reason or "")
        own = trainer.data_collator
        if reason:
            stack.close()  # the model has the attention that its user has set
        else:
            trainer.data_collator = PackingCollator(trainer.args.max_length)
        try:
            yield
        finally:
            trainer.data_collator = own


def pack_second_model(
    trainer: "DPOTrainer", model: PreTrainedModel, rows: Rows, cfg: DictDefault, packed: bool | str
) -> None:
    """Let a model that is loaded for its log-probs alone take packed rows, where the policy does and they are exact.

    Args:
        trainer: of the policy.
        model: is released with the attention that it is given here.
        rows: as in ``forward_pass``.
        cfg: of the run; the step that computed last may have shorter rows.
        packed: `sdpo.packed`.
    """
    if not packs(trainer):
        return
    compute_as_in(trainer, cfg)
    with packed_attention(model) as takes_attention:
        reason = no_way_in(model, takes_attention)
        reason = reason or disagreement(trainer, rows, model, beside=True, any_scores=packed is True)
    if reason is None:
        set_packed_attention(model)
    elif trainer.accelerator.is_main_process:
        LOG.info("forward pass of the model that is loaded for its log-probs: padded rows, because %s", reason)


def _obstacle(trainer: "DPOTrainer", model: torch.nn.Module, takes_attention: bool) -> str | None:
    """Why packed rows cannot be exact, as far as it is known without trying."""
    args = trainer.args
    adapters = trainer.model.peft_config.values() if isinstance(trainer.model, PeftModel) else ()
    obstacles = {
        "dropout is on (disable_dropout: false), and the two answers would share that of their prompt": not (
            args.disable_dropout
        ),
        f"truncation_mode is {args.truncation_mode!r}, which gives the two answers different prompts": (
            args.truncation_mode != "keep_start"
        ),
        f"the auxiliary loss of the experts of {type(model).__name__} is not transformers' own": (
            trainer.aux_loss_enabled and not balances_packed_rows(model)
        ),
        "the adapter puts tokens of its own before each row": any(config.is_prompt_learning for config in adapters),
        "torch_compile would compile anew for every batch": (
            trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        ),
        "several GPUs in one process would each be given a piece of the row (start one process a GPU)": args.n_gpu > 1,
        "compute_metrics is given logits as padded rows have them": trainer.compute_metrics is not None,
        f"{type(trainer.data_collator).__name__}, a collator that is not TRL's, makes the batches": (
            trainer.data_collator is not trainer.padded_collator
        ),
    }
    return no_way_in(model, takes_attention) or next((reason for reason, holds in obstacles.items() if holds), None)


def no_way_in(model: PreTrainedModel, takes_attention: bool) -> str | None:
    """Why a model cannot be given packed rows at all; None where it can.

    Args:
        model: of the policy, or one beside it.
        takes_attention: whether it takes an attention by name.
    """
    config = model.config.get_text_config()
    name, layers = type(model).__name__, set(getattr(config, "layer_types", None) or ATTENTIONS)
    if not takes_attention:
        return f"{name} does not take an attention by name"
    if not inspect.signature(model.forward).parameters.keys() >= {"position_ids", "logits_to_keep"}:
        return f"{name} takes no positions, or gives logits for all tokens"
    if model._is_stateful or layers - ATTENTIONS:
        kinds = ", ".join(sorted(layers - ATTENTIONS)) or "a state"
        return f"{name} has layers other than full and sliding attention ({kinds})"
    return None
