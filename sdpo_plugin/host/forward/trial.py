"""Packed and padded rows side by side, before a run relies on the one to be the other.

Two trials, neither of which takes more memory than packed training does. A few tokens go through TRL's own padded
batch, logits of all of them. The longest rows go through the model's own attention one pair at a time, padded as the
host pads them, but with logits of their answers alone: those of 2 × 8,192 tokens and a vocabulary of 152,000 are 10 GB.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from sdpo_plugin import gate
from sdpo_plugin.host.data.columns import IDS
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.engine import ready_model
from sdpo_plugin.host.forward.answer_logits import AnswerLogits, ReadLogits, TokenLogits, WholeLogits
from sdpo_plugin.host.forward.attention import own_attention
from sdpo_plugin.host.forward.head import read_at_once, read_in_parts, reading, watching
from sdpo_plugin.host.forward.log_probs import log_probs_by, policy_log_probs
from sdpo_plugin.host.forward.packing import PACKED, PackingCollator, longest_row
from sdpo_plugin.host.forward.precision import is_half_precision
from sdpo_plugin.host.forward.scores import watching_scores
from sdpo_plugin.rows import RowFacts

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

# Sets of tokenized rows, with what is known of them.
Rows = Sequence[tuple[Dataset, RowFacts]]
# The fewest that could see each other.
PAIRS_TRIED = 2
# Tokens of a prompt and of each answer, enough to see what is done with the logits of a head.
FEW = 4


def disagreement(
    trainer: "DPOTrainer", rows: Rows, model: PreTrainedModel, *, beside: bool = False, any_scores: bool = False
) -> str | None:
    """Send the longest rows through both forward passes; None where they agree within the noise of the dtype.

    If so, and nothing comes after its head, the model reads large logits in parts from now on.

    Args:
        trainer: holds the policy.
        rows: the longest of them are tried.
        model: the policy without its adapter, or a model beside it.
        beside: which of the two.
        any_scores: however many attention scores packed rows hold at once.
    """
    name = type(model if beside else trainer.model).__name__
    pairs = _longest_rows(rows)
    few = [{column: ids[:FEW] for column, ids in pair.items()} for pair in pairs]
    packing = PackingCollator(trainer.padded_collator.max_length)
    batch = trainer._prepare_inputs(packing(pairs))
    with ready_model(trainer, model if beside else None) as ready:
        log_probs = partial(policy_log_probs, trainer, ready)
        in_parts = not trainer.use_weighting and read_in_parts(model)
        with watching() as watch, watching_scores() as scores:
            packed = [log_probs(trainer._prepare_inputs(packing(few)))]
        if not any_scores and (reason := scores.too_many(name, longest_row(batch))):
            return reason
        if in_parts and not watch.is_last:
            read_at_once(model)
        with own_attention(model):
            padded = [log_probs(trainer._prepare_inputs(trainer.padded_collator(few)))]
            # One at a time: a step may train with as little.
            padded += [_padded_log_probs(trainer, ready, packing, pair) for pair in pairs]
        packed.append(log_probs(batch))
    off = float((torch.cat(padded, dim=1).float() - torch.cat(packed, dim=1).float()).abs().max())
    allowed = gate.tolerance_nats(is_half_precision(trainer), longest_row(batch))
    # Every rank has tried the same rows; one that has rounded otherwise must not go another way than the others.
    if not ranks.largest(int(not off <= allowed)):
        return None
    return (
        f"the log-probs of packed and padded rows of {name} differ by up to {off:.3g} nats, which is more than "
        f"rounding ({allowed:.3g})"
    )


def _padded_log_probs(
    trainer: "DPOTrainer", model: torch.nn.Module, packing: PackingCollator, pair: Mapping[str, Any]
) -> torch.Tensor:
    padded = trainer._prepare_inputs(trainer.padded_collator([pair]))
    return log_probs_by(trainer, _PaddedModel(model, padded), trainer._prepare_inputs(packing([pair])))


class _PaddedModel:
    """Takes the place of a model in TRL's code: it is given a packed batch of one pair, and computes the padded one."""

    def __init__(self, model: torch.nn.Module, padded: Mapping[str, torch.Tensor]) -> None:
        self._model, self._padded = model, padded

    def __call__(self, packed_cells: torch.Tensor, use_cache: bool, **packed: Any) -> Any:
        (pair,) = packed[PACKED].pairs
        ids, completion = self._padded["input_ids"], self._padded["completion_mask"]
        width = max(pair.chosen, pair.rejected)
        answers = slice(pair.prompt, pair.prompt + width)
        places = torch.arange(pair.prompt - 1, pair.prompt - 1 + width, device=ids.device)
        labels, is_answer = ids[:, answers].flatten(), completion[:, answers].flatten().bool()
        with reading(labels, log_probs_alone=True) as read:
            outputs = self._model(
                input_ids=ids,
                attention_mask=self._padded["attention_mask"],
                logits_to_keep=places,
                use_cache=use_cache,
            )
        found = outputs.logits.flatten(0, 1)
        if read.columns is not None:
            tokens: TokenLogits = ReadLogits(read.columns[is_answer])
        else:
            tokens = WholeLogits(found[is_answer].float(), labels[is_answer])
        outputs.logits = AnswerLogits(tokens, packed_cells, (2, width), pair.chosen)
        return outputs


def _longest_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The longest rows of all sets together."""
    found = [(int(facts.lengths[row]), s, row) for s, (_, facts) in enumerate(rows) for row in _longest(facts)]
    return [rows[s][0].select_columns(IDS)[row] for _, s, row in sorted(found, reverse=True)[:PAIRS_TRIED]]


def _longest(facts: RowFacts) -> list[int]:
    order: list[int] = np.argsort(-facts.lengths, kind="stable")[:PAIRS_TRIED].tolist()
    return order
