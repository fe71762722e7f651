"""The steps of a run out of its tokenized sources: D_1 … D_T, as `sdpo.partition` says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sdpo_plugin import estimates, measures, partition, rows, tables
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.columns import IDS, concatenate, row_facts
from sdpo_plugin.host.data.heldout import merged
from sdpo_plugin.host.data.planning import (
    DROP_HARDEST,
    Sketch,
    drawn_parts,
    make_plan,
    name_of,
    needs_base_tables,
    not_drawn,
    step_cfg,
)
from sdpo_plugin.host.data.rated import ratings
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.overlaps import overlaps
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.plan import LeftOut, OrderedSource, Overlap, Plan, RatedSource, StepPlan, host_total_steps
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


@dataclass(frozen=True)
class Layout:
    """The steps of a run, with what led to them.

    Attributes:
        plan: what will be done.
        steps: data of each step.
        heldout: the held-out sets of all steps, by name.
        base_tables: log-probs of each D_t under M_0, where they were needed to lay out the steps; else empty.
    """

    plan: Plan
    steps: Sequence[StepData]
    heldout: Mapping[str, Dataset]
    base_tables: Sequence[LogProbTable] = ()

    def data(self, step: StepPlan) -> StepData:
        """D_t."""
        return self.steps[step.index - 1]


def lay_out(
    cfg: DictDefault,
    block: SDPOConfig,
    sources: Sequence[TokenizedSource],
    base_tables: Sequence[LogProbTable] = (),
) -> Layout:
    """Make the steps out of the sources.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        sources: one per entry of `datasets:`, or one per step of `sdpo.steps`.
        base_tables: log-probs of each source under M_0, for easy_to_hard.

    Raises:
        ConfigError: a step would have no rows.
    """
    args = block.partition
    heldout = merged(source.heldout for source in sources)
    if args is None or args.strategy == "natural":
        steps = [_source_as_step(source) for source in sources]
        return Layout(_plan(cfg, block, sources, steps), steps, heldout)
    cut = _cut(args, sources, base_tables)
    by_source = args.strategy == "easy_to_hard" and args.unit != "row"
    steps = [_step(index, part, sources, by_source=by_source) for index, part in enumerate(cut.parts, 1)]
    plan = _plan(cfg, block, sources, steps, cut)
    if not needs_base_tables(block):
        return Layout(plan, steps, heldout)
    pool = tables.concatenate(base_tables)
    selected = [pool.select(part, step.facts.digest()) for part, step in zip(cut.parts, steps, strict=True)]
    return Layout(plan, steps, heldout, selected)


@dataclass(frozen=True)
class _Cut:
    """The rows of each step in the pool, and the order of the sources where they were ordered."""

    parts: partition.Partition
    ordering: tuple[OrderedSource, ...] = ()
    rated: tuple[RatedSource, ...] = ()


def _cut(args: PartitionArgs, sources: Sequence[TokenizedSource], base_tables: Sequence[LogProbTable]) -> _Cut:
    sizes = [len(source.train) for source in sources]
    drawn = drawn_parts(args, sizes)
    if drawn is not None:
        return _Cut(drawn)
    eases = [_eases(args, source, table) for source, table in zip_longest(sources, base_tables)]
    if args.unit == "row":
        drop, cumulative = args.drop_hardest or 0.0, args.pool == "cumulative"
        return _Cut(partition.easy_to_hard_rows(np.concatenate(eases), args.shares(), drop, cumulative=cumulative))
    names = [name_of(source) for source in sources]
    if args.column is not None:
        order, parts = partition.easy_to_hard_sources(sizes, [float(ease.mean()) for ease in eases])
        means = [float(ratings(source.train).mean()) for source in sources]
        return _Cut(parts, rated=tuple(RatedSource(names[s], sizes[s], means[s]) for s in order))
    intervals = [estimates.wilson(int((gamma > 0).sum()), len(gamma)) for gamma in eases]
    order, parts = partition.easy_to_hard_sources(sizes, [interval.value for interval in intervals])
    ranks = [OrderedSource(names[s], sizes[s], intervals[s].value, intervals[s].low, intervals[s].high) for s in order]
    return _Cut(parts, tuple(ranks))


def _eases(args: PartitionArgs, source: TokenizedSource, table: LogProbTable | None) -> NDArray[np.floating]:
    """How easy each row of a source is: γ under M_0, or what a column of the data says."""
    if args.column is not None:
        return ratings(source.train) if args.descending is not False else -ratings(source.train)
    assert table is not None, "M_0 has looked at every source"
    return measures.gamma_per_token(table) if args.score == "log_ratio_per_token" else measures.gamma(table)


def _source_as_step(source: TokenizedSource) -> StepData:
    return StepData(**{name: value for name, value in vars(source).items() if name in StepData.__dataclass_fields__})


def _step(index: int, part: partition.Rows, sources: Sequence[TokenizedSource], *, by_source: bool) -> StepData:
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
    cut: _Cut | None = None,
) -> Plan:
    sketches = [
        Sketch(
            name=step.name,
            cfg=step.cfg,
            num_rows=len(step.train),
            heldout={name: len(held) for name, held in step.heldout.items()},
            num_dropped=step.num_dropped,
            total_num_steps=step.total_num_steps,
            settings=step.settings,
            source_rows=step.source_rows,
            rows_digest=None if step.is_awaited else step.facts.digest(),
            is_awaited=step.is_awaited,
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
    cut: _Cut | None,
) -> tuple[Overlap, ...]:
    """Prompts of a step that are in held-out sets, or in steps before it, too."""
    grows = block.partition is not None and block.partition.pool == "cumulative"
    heldout = merged(source.heldout for source in sources)
    held = {name: row_facts(dataset).prompts for name, dataset in heldout.items()}
    return tuple(
        overlaps([(step.name, step.facts.prompts) for step in steps], held, cut.parts if cut and grows else None)
    )


def _hardest(sources: Sequence[TokenizedSource], cut: _Cut | None) -> tuple[LeftOut, ...]:
    """The rows that no step has because they are too hard, by source."""
    if cut is None:
        return ()
    sizes = [len(source.train) for source in sources]
    own = partition.rows_by_source(partition.rows_in_none(cut.parts, sum(sizes)), sizes)
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
