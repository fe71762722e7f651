"""Log-probs of a batch, and of every row of a data set, under the policy as it stands or another model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sdpo_plugin.batches import Batches, batches
from sdpo_plugin.host.data.columns import IDS, row_facts
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.engine import ready_model, training_model
from sdpo_plugin.host.forward.answer_logits import AnswerLogits, ReadLogits, TokenLogits, WholeLogits
from sdpo_plugin.host.forward.attention import packed_row, takes_packed_rows
from sdpo_plugin.host.forward.head import compare_with_head, reading
from sdpo_plugin.host.forward.packing import PACKED, PackingCollator
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.tables import LogProbTable, TableBuilder

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

SECONDS_WITHOUT_BAR = 5.0  # of a pass in the middle of training


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


Rows = NDArray[np.int64]
Inputs = dict[str, Any]
# Summed log-probs and completion tokens of a batch, each of shape (2, rows); the same behind the numbers of its rows.
Numbers = tuple[torch.Tensor, torch.Tensor]
Computed = tuple[Rows, NDArray[np.float32], NDArray[np.int64]]


def log_prob_table(
    trainer: "DPOTrainer",
    dataset: Dataset,
    batch_size: int,
    model: str,
    what: str,
    other: PreTrainedModel | None = None,
    facts: RowFacts | None = None,
    name_row: Callable[[int], str] | None = None,
    check: Callable[[], None] = lambda: None,
    *,
    trains: bool = False,
) -> LogProbTable:
    """One pass without gradients over ``dataset``; the whole table on every rank.

    Batches are those of ``batches.batches``, packed ones by their tokens, dealt to the ranks one by one. The table goes
    over the wire, not over a shared file system. Gradients are off by TRL's ``no_grad``, not by ``inference_mode``:
    masks and scaled positions that a pass leaves behind may meet the backward pass of a training.

    Args:
        trainer: holds the policy, the collator and the ranks.
        dataset: tokenized rows (prompt_ids, chosen_ids, rejected_ids).
        batch_size: pairs in a batch of the training.
        model: name of the model, "M_0" … "M_T".
        what: name of the data set, for the progress bar and errors.
        other: a model in place of the policy.
        facts: keys and lengths of the rows, where they are known already.
        name_row: says which row one is, for errors.
        check: called before every round of batches, on every rank; it may end the run.
        trains: the policy is in the middle of its training; a bar is shown only where the pass takes long.

    Raises:
        ReferenceTableError: a row is missing or its log-prob is not finite.
    """
    facts = facts or row_facts(dataset)
    collate = trainer.data_collator if other is None or takes_packed_rows(other) else trainer.padded_collator
    dealt = batches(facts.cut(collate.max_length), batch_size, by_tokens=isinstance(collate, PackingCollator))
    delay = SECONDS_WITHOUT_BAR if trains else 0
    bar = partial(tqdm, desc=f"log-probs of {what} by {model}", dynamic_ncols=True, delay=delay)
    with training_model(trainer) if trains else ready_model(trainer, other) as ready:
        read = partial(_batch, collate, dataset.select_columns(IDS))  # no text is read for nothing
        mine = _of_this_rank(dealt, read, partial(_computed, trainer, ready), bar, check)
    return _gathered(mine, len(dataset)).finish(model, facts.digest(), what, name_row)


def _of_this_rank(
    dealt: Batches,
    read: Callable[[Rows], Inputs],
    compute: Callable[[Inputs], Numbers],
    bar: Callable[..., Any],
    check: Callable[[], None],
) -> list[Computed]:
    """The batches that are dealt to this rank, in rounds of one for each rank.

    A batch is read while a GPU computes the one before it, whose numbers are waited for only then.
    """
    rank, num_ranks = ranks.place()
    mine: list[Computed] = []
    under_way: tuple[Rows, Numbers] | None = None
    for first in bar(range(0, len(dealt), num_ranks), disable=rank != 0):
        check()
        rows = dealt.rows(first + rank)
        # Under ZeRO-3 a forward pass is a collective: a rank without rows computes those of rank 0 with it.
        inputs = read(rows if len(rows) else dealt.rows(first))
        if under_way is not None:
            mine.append(_fetched(*under_way))
        under_way = rows, compute(inputs)
    if under_way is not None and len(under_way[0]):  # only in the last round a rank has no rows
        mine.append(_fetched(*under_way))
    return mine


def _gathered(mine: list[Computed], num_rows: int) -> TableBuilder:
    """The batches of all ranks, on every rank; they travel as one array a column and rank."""
    builder = TableBuilder(num_rows)
    for part in ranks.gather([tuple(np.concatenate(column, axis=-1) for column in zip(*mine, strict=True))]):
        if part:  # a rank may have had no batch
            builder.fill(*part)
    return builder


def _batch(collate: Callable[[list[Any]], Inputs], ids: Dataset, rows: Rows) -> Inputs:
    """A batch, as it is read."""
    columns = ids[rows.tolist()]
    return collate([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])


def _computed(trainer: "DPOTrainer", model: torch.nn.Module, batch: Inputs) -> Numbers:
    """Summed log-probs and completion tokens of a batch, each of shape (2, rows): chosen, rejected."""
    inputs: dict[str, Any] = trainer._prepare_inputs(batch)
    tokens = torch.stack(inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2, dim=0))
    return policy_log_probs(trainer, model, inputs), tokens


def _fetched(rows: Rows, numbers: Numbers) -> Computed:
    """Waits for the device."""
    log_probs, tokens = numbers
    return rows, log_probs.float().cpu().numpy(), tokens.cpu().numpy().astype(np.int64)
