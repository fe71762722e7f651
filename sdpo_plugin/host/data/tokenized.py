"""Sources as token ids: tokenized once, by TRL's own code, before the first step trains."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.bos import with_one_bos
from sdpo_plugin.host.data.columns import IDS, row_facts
from sdpo_plugin.host.data.heldout import heldout_cfgs, merged
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.data.small_sets import workers
from sdpo_plugin.rows import RowFacts

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why


@dataclass(frozen=True)
class TokenizedSource:
    """A source as token ids.

    Attributes:
        cfg, num_dropped, total_num_steps, settings, is_awaited, num_left_out: as in ``LoadedSource``.
        train: tokenized rows.
        facts: keys and lengths of these rows.
        heldout: its held-out sets by name, tokenized.
    """

    name: str
    cfg: DictDefault
    train: Dataset
    facts: RowFacts
    heldout: Mapping[str, Dataset]
    num_dropped: int | None
    total_num_steps: int
    settings: Mapping[str, Any]
    is_awaited: bool = False
    num_left_out: int = 0


def token_ids(
    prepare: Callable[..., Dataset], dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
) -> Dataset:
    """Rows of texts or messages as token ids; rows that are so already as they are.

    Args:
        prepare: TRL's own code for it.
        dataset: the rows.
        tokenizer: of the policy.
        args: the trainer's; of these the number of worker processes.
        name: of the set, for the log.
    """
    if set(IDS) <= set(dataset.column_names):
        return dataset
    args = copy.copy(args)
    args.dataset_num_proc = workers(args.dataset_num_proc, len(dataset))
    return with_one_bos(prepare(dataset, tokenizer, args, name), tokenizer, name, args.dataset_num_proc)


def tokenize(trainer: "DPOTrainer", sources: Sequence[LoadedSource]) -> list[TokenizedSource]:
    """Tokenize all sources and held-out sets, so that bad data ends the run early.

    Raises:
        DataError: no row of a set is short enough, or one has a prompt without tokens.
    """
    nothing = Dataset.from_dict({column: [] for column in IDS})
    trains = [
        nothing if source.is_awaited else _prepare(trainer, source.train, source.cfg, f"source {t}", source.name)
        for t, source in enumerate(sources, 1)
    ]
    heldout, _ = tokenize_heldout(trainer, sources)
    return [
        TokenizedSource(
            source.name,
            source.cfg,
            train,
            row_facts(train),
            {name: heldout[name] for name in source.heldout},
            # A BOS can make a prompt too long that the host has kept.
            None if source.num_dropped is None else source.num_dropped + len(source.train) - len(train),
            source.total_num_steps,
            source.settings,
            source.is_awaited,
            source.num_left_out,
        )
        for source, train in zip(sources, trains, strict=True)
    ]


def tokenize_heldout(
    trainer: "DPOTrainer", sources: Sequence[LoadedSource]
) -> tuple[dict[str, Dataset], dict[str, DictDefault]]:
    """The held-out sets of all sources by name, tokenized; with the config by which each is computed.

    Raises:
        DataError: no row of a set is short enough, or one has a prompt without tokens.
    """
    every = merged(source.heldout for source in sources)
    cfgs = heldout_cfgs(sources)
    tokenized = {
        name: _prepare(trainer, rows, cfgs[name], f"held-out {name}", f"held-out set {name}")
        for name, rows in every.items()
    }
    return tokenized, cfgs


def _prepare(trainer: "DPOTrainer", dataset: Dataset, cfg: DictDefault, what: str, name: str) -> Dataset:
    args = copy.copy(trainer.args)
    args.max_length = cfg.sequence_len
    prepared = trainer._prepare_dataset(dataset, trainer.processing_class, args, what)
    if not len(prepared):
        raise DataError(
            f"{name}: no row has a prompt shorter than sequence_len: {cfg.sequence_len} in tokens; "
            "set a larger sequence_len or another source."
        )
    rows = prepared.flatten_indices() if prepared._indices is not None else prepared
    _require_prompts(rows, name, trainer.processing_class)
    return rows


def _require_prompts(rows: Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    facts = row_facts(rows)
    without = np.flatnonzero(facts.tokens == facts.answers)
    if len(without):
        answer = tokenizer.decode(rows[int(without[0])]["chosen_ids"])
        raise DataError(
            f"{name}: {len(without):,} of {len(rows):,} rows have a prompt without tokens (the first has the chosen "
            f"answer {answer[:60]!r}), and the first token of an answer has no log-prob without one before it. Remove "
            "these rows, or set a type or a tokenizer that writes a beginning (a BOS token, a turn)."
        )
