"""The reference pass: log-probs of every row of a data set under the policy as it stands."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm
from trl import DPOTrainer

from sdpo_plugin.host import distributed
from sdpo_plugin.host.datasets import IDS, row_facts
from sdpo_plugin.host.numbers import policy_log_probs
from sdpo_plugin.reference import ReferenceTable, TableBuilder
from sdpo_plugin.rows import RowFacts

Scores = tuple[list[int], NDArray[np.float32], NDArray[np.int64]]


def score(
    trainer: DPOTrainer,
    dataset: Dataset,
    batch_size: int,
    model: str,
    what: str,
    reference: torch.nn.Module | None = None,
    facts: RowFacts | None = None,
    name_row: Callable[[int], str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> ReferenceTable:
    """One pass without gradients over ``dataset``; the whole table on every rank.

    Rows are taken longest first, so that a batch that does not fit fails at once and padding is little, and dealt
    to the ranks batch by batch. The table goes over the wire, not over a shared file system.

    Args:
        trainer: holds the policy, the collator and the ranks.
        dataset: tokenized rows (prompt_ids, chosen_ids, rejected_ids).
        batch_size: pairs per forward pass and rank.
        model: name of the policy as it stands, "M_0" … "M_T".
        what: name of the data set, for the progress bar and errors.
        reference: another model that scores instead of the policy.
        facts: keys and lengths of the rows, where they are known already.
        name_row: says which row one is, for errors.
        check: called before every round of batches, on every rank; it may end the run.

    Raises:
        ReferenceTableError: a row is missing or its log-prob is not finite.
    """
    facts = facts or row_facts(dataset)
    ids = dataset.select_columns(IDS)  # texts are not read for nothing
    batches = _deal(np.argsort(-facts.lengths, kind="stable"), batch_size, trainer.accelerator.num_processes)
    mine: list[Scores] = []
    rank = trainer.accelerator.process_index
    bar = tqdm(batches, desc=f"{model} scores {what}", disable=rank != 0, dynamic_ncols=True)
    with distributed.scoring_model(trainer, reference) as policy:
        for per_rank in bar:
            check()
            rows = per_rank[rank]
            # Under ZeRO-3 a forward pass is a collective: a rank without rows walks along with those of rank 0.
            scores = _score_batch(trainer, policy, ids, rows if len(rows) else per_rank[0])
            if len(rows):
                mine.append((rows.tolist(), *scores))
    builder = TableBuilder(len(dataset))
    for rows_scored, logps, tokens in distributed.gather(mine):
        builder.fill(rows_scored, logps, tokens)
    return builder.finish(model, facts.digest(), what, name_row)


def _deal(order: NDArray[np.int64], batch_size: int, num_ranks: int) -> list[list[NDArray[np.int64]]]:
    """Rounds of one batch per rank; in the last round the rows that are left may leave ranks with none."""
    step = batch_size * num_ranks
    rounds = (order[start : start + step] for start in range(0, len(order), step))
    return [[part[rank * batch_size : (rank + 1) * batch_size] for rank in range(num_ranks)] for part in rounds]


def _score_batch(
    trainer: DPOTrainer, policy: torch.nn.Module, ids: Dataset, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Summed log-probs and scored tokens of a batch, each of shape (2, len(rows)): chosen, rejected."""
    columns = ids[rows.tolist()]
    pairs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    inputs: dict[str, Any] = trainer._prepare_inputs(trainer.data_collator(pairs))
    logps = policy_log_probs(trainer, policy, inputs)
    tokens = torch.stack(inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2, dim=0))
    return logps.float().cpu().numpy(), tokens.cpu().numpy().astype(np.int64)
