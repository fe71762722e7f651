"""The steps of a run out of its tokenized sources: D_1 … D_T, as `sdpo.partition` says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugin import partition, rows, tables
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.columns import IDS, concatenate, row_facts
from sdpo_plugin.host.data.cutting import Cut, cut_pool
from sdpo_plugin.host.data.heldout import merged
from sdpo_plugin.host.data.planning import (
    DROP_HARDEST,
    Sketch,
    make_plan,
    name_of,
    needs_base_tables,
    not_drawn,
    step_cfg,
)
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.overlaps import overlaps
from sdpo_plugin.plan import LeftOut, Overlap, Plan, StepPlan, host_total_steps
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.tables import LogProbTable

SHOWN_LETTERS = 80


@dataclass(frozen=True)
class StepData:
    """D_t, as it trains.

    Attributes:
        cfg: the config of this step alone.
        train: its rows, tokenized.
        facts: keys and lengths of these rows.
        heldout: its held-out sets by name, tokenized.
        num_dropped: rows of its sources that are in neither; None where that is not known.
        total_num_steps: optimizer steps by the host's count.
        settings: the host keys that the step sets for itself.
        source_rows: rows that come from each entry of ``cfg.datasets``; empty where the host merged them.
        is_awaited: `sdpo.before_step` makes the rows, and has not yet.
        to_rank: rows that it will have when the model before it has ranked what is left; 0: it has them.
    """

    name: str
    cfg: DictDefault
    train: Dataset
    facts: RowFacts
    heldout: Mapping[str, Dataset]
    num_dropped: int | None
    total_num_steps: int
    settings: Mapping[str, Any]
    source_rows: tuple[int, ...] = ()
    is_awaited: bool = False
    to_rank: int = 0


@dataclass(frozen=True)
class Layout:
    """The steps of a run, with what led to them.

    Attributes:
        plan: what will be done.
        steps: data of each step.
        heldout: the held-out sets of all steps, by name.
        base_tables: log-probs of each D_t under M_0, where they were needed to lay out the steps; else empty. Of steps
            that are not ranked yet there are none.
        source_tables: log-probs of each source under M_0, likewise.
        cut: how they were cut, likewise.
    """

    plan: Plan
    steps: Sequence[StepData]
    heldout: Mapping[str, Dataset]
    base_tables: Sequence[LogProbTable] = ()
    source_tables: Sequence[LogProbTable] = ()
    cut: Cut | None = None

    def data(self, step: StepPlan) -> StepData:
        """D_t."""
        return self.steps[step.index - 1]


def lay_out(
    cfg: DictDefault,
    block: SDPOConfig,
    sources: Sequence[TokenizedSource],
    base_tables: Sequence[LogProbTable] = (),
    picked: Sequence[partition.Rows] = (),
) -> Layout:
    """Make the steps out of the sources.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        sources: one per entry of `datasets:`, or one per step of `sdpo.steps`.
        base_tables: log-probs of each source under M_0, for easy_to_hard.
        picked: with `rescore`, the rows of the steps after the first that have been ranked.

    Raises:
        ConfigError: a step would have no rows.
    """
    args = block.partition
    heldout = merged(source.heldout for source in sources)
    if args is None or args.strategy == "natural":
        steps = [_source_as_step(source) for source in sources]
        return Layout(_plan(cfg, block, sources, steps), steps, heldout)
    cut = cut_pool(args, sources, base_tables, picked)
    by_source = args.strategy == "easy_to_hard" and args.unit != "row"
    steps = [step_of(index, part, sources, by_source=by_source) for index, part in enumerate(cut.parts, 1)]
    steps += [_unranked(index, rows, sources) for index, rows in enumerate(cut.to_rank, len(steps) + 1)]
    plan = _plan(cfg, block, sources, steps, cut)
    if not needs_base_tables(block):
        return Layout(plan, steps, heldout)
    pool = tables.concatenate(base_tables)
    selected = [pool.select(part, step.facts.digest()) for part, step in zip(cut.parts, steps, strict=False)]
    return Layout(plan, steps, heldout, selected, base_tables, cut)


def _source_as_step(source: TokenizedSource) -> StepData:
    return StepData(**{name: value for name, value in vars(source).items() if name in StepData.__dataclass_fields__})


def _unranked(index: int, num_rows: int, sources: Sequence[TokenizedSource]) -> StepData:
    """D_t without its rows."""
    cfg = step_cfg(sources, range(len(sources)))
    total = host_total_steps(num_rows, cfg.num_epochs, cfg.batch_size)
    nothing, heldout = np.zeros(0, dtype=np.int64), merged(source.heldout for source in sources)
    facts = sources[0].facts.take(nothing)
    train = Dataset.from_dict({column: [] for column in IDS})
    return StepData(f"step-{index}", cfg, train, facts, heldout, None, total, {}, to_rank=num_rows)


def step_of(
    index: int, part: partition.Rows, sources: Sequence[TokenizedSource], *, by_source: bool = False
) -> StepData:
    """D_t out of the pool: rows of every source in the order of the pool, read from the memory-mapped sources."""
    own = partition.rows_by_source(part, [len(source.train) for source in sources])
    used = [number for number in range(len(sources)) if len(own[number])]
    train = concatenate([sources[number].train.select_columns(IDS).select(own[number]) for number in used])
    assert train is not None, "a step has rows"
    cfg = step_cfg(sources, used)
    return StepData(
        name=f"step-{index}",
        cfg=cfg,
        train=train,
        facts=rows.concatenate([source.facts for source in sources]).take(part),
        heldout=merged(source.heldout for source in sources),
        num_dropped=sources[used[0]].num_dropped if by_source else None,
        total_num_steps=host_total_steps(len(part), cfg.num_epochs, cfg.batch_size),
        settings={},
        source_rows=tuple(len(own[number]) for number in used),
    )


def _plan(
    cfg: DictDefault,
    block: SDPOConfig,
    sources: Sequence[TokenizedSource],
    steps: Sequence[StepData],
    cut: Cut | None = None,
) -> Plan:
    sketches = [
        Sketch(
            name=step.name,
            cfg=step.cfg,
            num_rows=step.to_rank or len(step.train),
            heldout={name: len(held) for name, held in step.heldout.items()},
            num_dropped=step.num_dropped,
            total_num_steps=step.total_num_steps,
            settings=step.settings,
            source_rows=step.source_rows,
            rows_digest=None if step.is_awaited or step.to_rank else step.facts.digest(),
            is_awaited=step.is_awaited,
            is_unranked=step.to_rank > 0,
        )
        for step in steps
    ]
    return replace(
        make_plan(cfg, block, sketches),
        partition={} if block.partition is None else block.partition.model_dump(exclude_none=True),
        ordering=() if cut is None else cut.ordering,
        overlaps=_overlaps(block, sources, steps, cut),
        left_out=not_drawn(block, sources) + _hardest(sources, cut),
        rated=() if cut is None else cut.rated,
    )


def _overlaps(
    block: SDPOConfig,
    sources: Sequence[TokenizedSource],
    steps: Sequence[StepData],
    cut: Cut | None,
) -> tuple[Overlap, ...]:
    """Prompts of a step that are in held-out sets, or in steps before it, too."""
    grows = block.partition is not None and block.partition.pool == "cumulative"
    heldout = merged(source.heldout for source in sources)
    held = {name: row_facts(dataset).prompts for name, dataset in heldout.items()}
    return tuple(
        overlaps([(step.name, step.facts.prompts) for step in steps], held, cut.parts if cut and grows else None)
    )


def _hardest(sources: Sequence[TokenizedSource], cut: Cut | None) -> tuple[LeftOut, ...]:
    """The rows that no step has because they are too hard, by source."""
    if cut is None:
        return ()
    sizes = [len(source.train) for source in sources]
    own = partition.rows_by_source(cut.hardest, sizes)
    return tuple(
        LeftOut(name_of(source), len(rows), size, DROP_HARDEST)
        for source, rows, size in zip(sources, own, sizes, strict=True)
        if len(rows)
    )


def describe_row(tokenizer: PreTrainedTokenizerBase, step: StepPlan, data: StepData, row: int) -> str:
    """A row of D_t by its place and its first words: sources are shuffled and filtered before they are numbered."""
    ids = data.train[row]["prompt_ids"]
    text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    return f"{step.name_row(row)}, which begins {text[:SHOWN_LETTERS]!r}"
