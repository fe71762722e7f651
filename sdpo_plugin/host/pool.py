"""`sdpo.partition`: the tokenized sources as one pool, and the pool as steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from axolotl.utils.dict import DictDefault
from datasets import Dataset, concatenate_datasets

from sdpo_plugin import diagnostics, partition
from sdpo_plugin.args import PartitionArgs, SDPOConfig
from sdpo_plugin.host.datasets import IDS, StepData, row_facts, source_name
from sdpo_plugin.host.heldout import merged
from sdpo_plugin.plan import Overlap, Plan, SourceRank, StepPlan, host_total_steps, model_name
from sdpo_plugin.reference import ReferenceTable, concatenate
from sdpo_plugin.rows import join

DEFAULT_SEED = 42


@dataclass(frozen=True)
class Layout:
    """The steps of a run, with what led to them.

    Attributes:
        plan: what will be done.
        steps: data of each step.
        base_tables: log-probs of each D_t under M_0, where they were needed to lay out the steps; else empty.
    """

    plan: Plan
    steps: Sequence[StepData]
    base_tables: Sequence[ReferenceTable] = ()


def needs_scores(block: SDPOConfig) -> bool:
    """Whether the steps can be laid out only when M_0 has scored the pool."""
    return block.partition is not None and block.partition.strategy == "easy_to_hard"


def lay_out(
    cfg: DictDefault,
    block: SDPOConfig,
    sources: Sequence[StepData],
    heldout: Mapping[str, Dataset],
    scores: Sequence[ReferenceTable] = (),
) -> Layout:
    """Make the steps out of the tokenized sources.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        sources: one per entry of `datasets:`, or the steps of `sdpo.steps`, tokenized.
        heldout: the tokenized held-out sets, by name.
        scores: log-probs of each source under M_0, for easy_to_hard.

    Raises:
        ConfigError: a step would have no rows.
    """
    args = block.partition
    ordering: tuple[SourceRank, ...] = ()
    if args is None or args.strategy == "natural":
        steps, parts = list(sources), None
    else:
        parts, ordering = _cut(args, sources, scores)
        steps = [_step(index, rows, sources, by_source=bool(ordering)) for index, rows in enumerate(parts, 1)]
    plan = replace(
        make_plan(cfg, block, steps),
        partition={} if args is None else args.model_dump(exclude_none=True),
        ordering=ordering,
        overlaps=tuple(_overlaps(steps, heldout)),
    )
    if not scores or parts is None:
        return Layout(plan, steps)
    pool = concatenate(scores)
    tables = [pool.select(rows, step.facts.digest()) for rows, step in zip(parts, steps, strict=True) if step.facts]
    return Layout(plan, steps, tables)


def preview(cfg: DictDefault, block: SDPOConfig, sources: Sequence[StepData]) -> Plan:
    """The plan as far as it is known before the base model has scored anything, for `axolotl preprocess`."""
    args = block.partition
    by_score = needs_scores(block)
    if args is None or args.strategy == "natural" or (by_score and args.unit != "row"):
        return make_plan(cfg, block, sources)
    if by_score:  # sizes are known, rows are not
        parts = partition.easy_to_hard_rows(np.zeros(sum(len(source.train) for source in sources)), args.shares())
    else:
        parts, _ = _cut(args, sources, ())
    steps = [_step(index, rows, sources, by_source=False, tokenized=False) for index, rows in enumerate(parts, 1)]
    if by_score:
        every = sources[0].cfg | {"datasets": [entry for source in sources for entry in source.cfg.datasets]}
        steps = [replace(step, source_rows=(), cfg=DictDefault(every)) for step in steps]
    return make_plan(cfg, block, steps)


def _cut(
    args: PartitionArgs, sources: Sequence[StepData], scores: Sequence[ReferenceTable]
) -> tuple[partition.Partition, tuple[SourceRank, ...]]:
    sizes = [len(source.train) for source in sources]
    seed = DEFAULT_SEED if args.seed is None else args.seed
    if args.strategy == "random":
        return partition.random(sum(sizes), args.shares(), seed), ()
    if args.strategy == "stratified":
        return partition.stratified(sizes, args.shares(), seed), ()
    per_token = args.score == "log_ratio_per_token"
    gammas = [diagnostics.gamma_per_token(table) if per_token else diagnostics.gamma(table) for table in scores]
    if args.unit == "row":
        return partition.easy_to_hard_rows(np.concatenate(gammas), args.shares()), ()
    intervals = [partition.wilson(int((gamma > 0).sum()), len(gamma)) for gamma in gammas]
    order, parts = partition.easy_to_hard_sources(sizes, [interval.value for interval in intervals])
    names = [", ".join(source_name(entry) for entry in source.cfg.datasets) for source in sources]
    ranks = [SourceRank(names[s], sizes[s], intervals[s].value, intervals[s].low, intervals[s].high) for s in order]
    return parts, tuple(ranks)


def _step(
    index: int, rows: partition.Rows, sources: Sequence[StepData], *, by_source: bool, tokenized: bool = True
) -> StepData:
    """D_t out of the pool: rows of every source in the order of the pool, read from the memory-mapped sources.

    Sources that are not tokenized may not fit together yet; their D_t is only counted.
    """
    ends = np.cumsum([len(source.train) for source in sources])
    owner = np.searchsorted(ends, rows, side="right")
    counts = np.bincount(owner, minlength=len(sources))
    used = [number for number in range(len(sources)) if counts[number]]
    parts: list[Dataset] = []
    facts = join([source.facts for source in sources if source.facts]).take(rows) if tokenized else None
    for number in used if tokenized else ():
        train = sources[number].train
        parts.append(train.select_columns(IDS).select(rows[owner == number] - (ends[number] - len(train))))
    step_cfg = DictDefault({**sources[0].cfg, "datasets": [e for n in used for e in sources[n].cfg.datasets]})
    return StepData(
        name=f"step-{index}",
        cfg=step_cfg,
        train=concatenate_datasets(parts) if tokenized else Dataset.from_dict({"row": rows}),
        heldout=merged(source.heldout for source in sources),
        num_dropped=sources[used[0]].num_dropped if by_source else None,
        total_num_steps=host_total_steps(len(rows), step_cfg.num_epochs, step_cfg.batch_size),
        source_rows=tuple(int(counts[number]) for number in used),
        facts=facts,
    )


def _overlaps(steps: Sequence[StepData], heldout: Mapping[str, Dataset]) -> list[Overlap]:
    """Where prompts of a step stand in held-out sets, or in steps before it."""
    keys = [step.facts.prompts for step in steps if step.facts]
    held = {name: row_facts(rows).prompts for name, rows in heldout.items()}
    found = []
    for index, step in enumerate(steps):
        others = {f"step {steps[j].name}": keys[j] for j in range(index)}
        others |= {f"held-out {name}": prompts for name, prompts in held.items()}
        for name, prompts in others.items():
            count = partition.rows_also_in(keys[index], prompts)
            if count:
                found.append(Overlap(step.name, name, count))
    return found


def make_plan(cfg: DictDefault, block: SDPOConfig, steps: Sequence[StepData]) -> Plan:
    """The plan of these steps."""
    heldout: dict[str, None] = {}
    plans = []
    for index, step in enumerate(steps, 1):
        heldout.update(dict.fromkeys(step.heldout))
        previous = model_name(index - 1)
        named = {"previous": previous, "base": model_name(0)}
        plans.append(
            StepPlan(
                index=index,
                name=step.name,
                sources=tuple(source_name(entry) for entry in step.cfg.datasets),
                num_rows=len(step.train),
                num_dropped=step.num_dropped,
                num_heldout=sum(len(rows) for rows in step.heldout.values()),
                num_optimizer_steps=step.cfg.max_steps or step.total_num_steps,
                rows_digest=None if step.facts is None else step.facts.digest(),
                reference=named.get(block.reference) or source_name({"path": block.reference}),
                policy_init=named[block.policy_init],
                settings=step.settings,
                source_rows=step.source_rows,
            )
        )
    return Plan(str(cfg.base_model), tuple(plans), tuple(heldout), block.export_steps)
