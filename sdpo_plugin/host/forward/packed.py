"""The packed forward pass, where it is exact: chosen by what the trainer is set to, and by trying it."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from sdpo_plugin import gate
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.data.columns import IDS
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.engine import ready_model
from sdpo_plugin.host.forward.attention import forget_masks, own_attention, packed_attention, set_packed_attention
from sdpo_plugin.host.forward.experts import balances_packed_rows, balancing_packed_rows
from sdpo_plugin.host.forward.head import read_at_once, read_in_parts, watching
from sdpo_plugin.host.forward.log_probs import compute_as_in, policy_log_probs
from sdpo_plugin.host.forward.packing import PackingCollator, longest_row
from sdpo_plugin.host.forward.precision import is_half_precision
from sdpo_plugin.host.patches import reading_answer_logits
from sdpo_plugin.rows import RowFacts

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

LOG = logging.getLogger("axolotl.sdpo_plugin")
# Of transformers' `layer_types` those whose tokens see what a mask says, and nothing else.
ATTENTIONS = {"full_attention", "sliding_attention"}
# Sets of tokenized rows, with what is known of them.
Rows = Sequence[tuple[Dataset, RowFacts]]
# The fewest that could see each other. Padded, a whole batch might not fit where packed rows do.
PAIRS_TRIED = 2
# Tokens of a prompt and its answers, enough to see what a model does with the logits of its head.
FEW = 4


@contextmanager
def forward_pass(trainer: "DPOTrainer", packed: bool | str, rows: Rows) -> Iterator[None]:
    """Within this context the trainer computes packed rows, or padded ones where packed rows would not be exact.

    Args:
        trainer: its collator is replaced.
        packed: `sdpo.packed`: "auto", True or False.
        rows: the longest of them go through both.

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
        reason = _obstacle(trainer, model, takes_attention) or _disagreement(trainer, rows, model)
        if reason and packed is True:
            raise ConfigError(f"sdpo.packed: true, but {reason}; set packed: auto, or false.")
        if trainer.accelerator.is_main_process:
            LOG.info("forward pass: padded rows, because %s" if reason else "forward pass: packed rows%s", reason or "")
        if reason:
            stack.close()  # the model has the attention that its user has set
        else:
            trainer.data_collator = PackingCollator(trainer.args.max_length)
        try:
            yield
        finally:
            trainer.data_collator = trainer.padded_collator


def pack_second_model(trainer: "DPOTrainer", model: PreTrainedModel, rows: Rows, cfg: DictDefault) -> None:
    """Let a model that is loaded for its log-probs alone take packed rows, where the policy does and they are exact.

    Args:
        trainer: of the policy.
        model: is released with the attention that it is given here.
        rows: as in ``forward_pass``.
        cfg: of the run; the step that computed last may have shorter rows.
    """
    if trainer.data_collator is trainer.padded_collator:
        return
    compute_as_in(trainer, cfg)
    with packed_attention(model) as takes_attention:
        reason = no_way_in(model, takes_attention) or _disagreement(trainer, rows, model, beside=True)
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
        "several GPUs in one process would each be given a piece of the row": args.n_gpu > 1,
        "compute_metrics is given logits as padded rows have them": trainer.compute_metrics is not None,
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


def _disagreement(trainer: "DPOTrainer", rows: Rows, model: PreTrainedModel, *, beside: bool = False) -> str | None:
    """Send the longest rows through both forward passes; None where they agree within the noise of the dtype.

    If so, and nothing comes after its head, the model reads large logits in parts from now on.

    Args:
        trainer: holds the policy.
        rows: as in ``forward_pass``.
        model: the policy without its adapter, or a model beside it.
        beside: which of the two.
    """
    pairs = _longest_rows(rows)
    packing = PackingCollator(trainer.padded_collator.max_length)
    packed_inputs = packing(pairs)
    with ready_model(trainer, model if beside else None) as ready:
        log_probs_of = partial(_log_probs, trainer, ready)
        if not trainer.use_weighting and read_in_parts(model):
            with watching() as watch:
                log_probs_of(packing([{name: ids[:FEW] for name, ids in pairs[0].items()}]))
            if not watch.is_last:
                read_at_once(model)
        with own_attention(model):  # one at a time: a step may train with as little
            each = [log_probs_of(trainer.padded_collator([pair])) for pair in pairs]
            padded = torch.cat(each, dim=1)
        packed = log_probs_of(packed_inputs)
    allowed = gate.tolerance_nats(is_half_precision(trainer), longest_row(packed_inputs))
    off = float((padded - packed).abs().max())
    # Every rank has tried the same rows; one that has rounded otherwise must not go another way than the others.
    if not ranks.largest(int(not off <= allowed)):
        return None
    name = type(model if beside else trainer.model).__name__
    return (
        f"the log-probs of packed and padded rows of {name} differ by up to {off:.3g} nats, which is more than "
        f"rounding ({allowed:.3g})"
    )


def _log_probs(trainer: "DPOTrainer", model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return policy_log_probs(trainer, model, trainer._prepare_inputs(inputs)).float()


def _longest_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The longest rows of all sets together."""
    found = [(int(facts.lengths[row]), s, row) for s, (_, facts) in enumerate(rows) for row in _longest(facts)]
    return [rows[s][0].select_columns(IDS)[row] for _, s, row in sorted(found, reverse=True)[:PAIRS_TRIED]]


def _longest(facts: RowFacts) -> list[int]:
    order: list[int] = np.argsort(-facts.lengths, kind="stable")[:PAIRS_TRIED].tolist()
    return order
