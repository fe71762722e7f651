"""Log-probs of every row of a data set: a pass without gradients, by all ranks, under the policy or another model."""

from collections.abc import Callable, Mapping
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
from sdpo_plugin.host.forward.attention import takes_packed_rows
from sdpo_plugin.host.forward.log_probs import compute_as_in, policy_log_probs
from sdpo_plugin.host.forward.packed import forward_pass
from sdpo_plugin.host.forward.packing import PackingCollator
from sdpo_plugin.host.forward.rotary import require_own_positions
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.tables import LogProbTable, TableBuilder

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

SECONDS_WITHOUT_BAR = 5.0  # of a pass in the middle of training
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


def tables_by_name(
    trainer: "DPOTrainer", packed: bool | str, sets: Mapping[str, Dataset], cfgs: Mapping[str, DictDefault], model: str
) -> dict[str, LogProbTable]:
    """Log-probs of held-out sets outside of a run, packed where the run would pack them.

    Args:
        trainer: holds the model.
        packed: `sdpo.packed`.
        sets: by name, tokenized.
        cfgs: the config of the step that evaluates on each.
        model: its name.

    Raises:
        DataError: rows of a set would change each other's positions.
    """
    for name, rows in sets.items():
        lengths = {f"held-out {name}": row_facts(rows).cut(cfgs[name].sequence_len).lengths}
        alone = packed is False and cfgs[name].eval_batch_size == 1
        require_own_positions(trainer.model, lengths, model, alone=alone)
    tables = {}
    with forward_pass(trainer, packed, [(rows, row_facts(rows)) for rows in sets.values()]):
        for name, rows in sets.items():
            compute_as_in(trainer, cfgs[name])
            tables[name] = log_prob_table(trainer, rows, cfgs[name].eval_batch_size, model, f"held-out {name}")
    return tables


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
