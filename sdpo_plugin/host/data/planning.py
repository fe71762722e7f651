"""The plan of a run, from what is known of its steps: before anything is tokenized, and when all is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from axolotl.utils.dict import DictDefault

from sdpo_plugin import partition
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.heldout import merged
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.data.read_errors import source_name
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.plan import LeftOut, Plan, StepPlan, host_total_steps, model_name
from sdpo_plugin.refresh import RefreshRule
from sdpo_plugin.refresh_args import RefreshArgs

DROP_HARDEST = "drop_hardest"


@dataclass(frozen=True)
class Sketch:
    """A step as far as a plan needs it.

    Attributes:
        num_rows: of D_t.
        heldout: rows of each of its held-out sets, by name.
        rows_digest: of D_t; None before it is tokenized.
        The other attributes are those of ``StepData``.
    """

    name: str
    cfg: DictDefault
    num_rows: int
    heldout: Mapping[str, int]
    num_dropped: int | None
    total_num_steps: int
    settings: Mapping[str, Any]
    source_rows: tuple[int, ...] = ()
    rows_digest: str | None = None
    is_awaited: bool = False
    is_unranked: bool = False


def needs_base_tables(block: SDPOConfig) -> bool:
    """Whether the steps can be laid out only by the log-probs of the pool under M_0."""
    args = block.partition
    return args is not None and args.strategy == "easy_to_hard" and args.column is None


def preview(cfg: DictDefault, block: SDPOConfig, sources: Sequence[LoadedSource]) -> Plan:
    """The plan as far as it is known before anything is tokenized, for `axolotl preprocess`.

    Raises:
        ConfigError: a step would have no rows.
    """
    args = block.partition
    if args is None or args.strategy == "natural" or (args.strategy == "easy_to_hard" and args.unit != "row"):
        sketches = [_sketch(source) for source in sources]
        if args is not None and args.strategy != "natural":  # which source is which step is not known yet
            sketches = [replace(sketch, name=f"step-{index}") for index, sketch in enumerate(sketches, 1)]
    else:
        sketches = _sketches_by_row(args, sources)
    left_out = not_drawn(block, sources)
    if args is not None and args.drop_hardest is not None:  # of which source they are is not known yet
        num_rows = sum(len(source.train) for source in sources)
        num_dropped = num_rows - partition.rows_kept(num_rows, args.drop_hardest)
        left_out += (LeftOut("the pool", num_dropped, num_rows, DROP_HARDEST),)
    return replace(make_plan(cfg, block, sketches), left_out=left_out)


def not_drawn(block: SDPOConfig, sources: Sequence[LoadedSource | TokenizedSource]) -> tuple[LeftOut, ...]:
    """The rows that `max_rows` or `weights` leave out."""
    key = "weights" if block.partition is None or block.partition.max_rows is None else "max_rows"
    return tuple(
        LeftOut(name_of(source), source.num_left_out, len(source.train) + source.num_left_out, key)
        for source in sources
        if source.num_left_out
    )


def name_of(source: LoadedSource | TokenizedSource) -> str:
    """A source by the paths of its entries."""
    return ", ".join(source_name(entry) for entry in source.cfg.datasets)


def _sketch(source: LoadedSource) -> Sketch:
    return Sketch(
        name=source.name,
        cfg=source.cfg,
        num_rows=len(source.train),
        heldout={name: len(rows) for name, rows in source.heldout.items()},
        num_dropped=source.num_dropped,
        total_num_steps=source.total_num_steps,
        settings=source.settings,
        is_awaited=source.is_awaited,
    )


def drawn_parts(args: PartitionArgs, sizes: Sequence[int]) -> partition.Partition | None:
    """The rows of each step where chance decides: random and stratified; None for easy_to_hard.

    Raises:
        ConfigError: a step would have no rows.
    """
    if args.strategy == "random":
        return partition.random(sum(sizes), args.shares(), args.drawn_by)
    if args.strategy == "stratified":
        return partition.stratified(sizes, args.shares(), args.drawn_by)
    return None


def step_cfg(sources: Sequence[LoadedSource | TokenizedSource], used: Sequence[int]) -> DictDefault:
    """The config of a step of a partition: its data sets are those that it has rows of."""
    return DictDefault({**sources[0].cfg, "datasets": [entry for n in used for entry in sources[n].cfg.datasets]})


def _sketches_by_row(args: PartitionArgs, sources: Sequence[LoadedSource]) -> list[Sketch]:
    """Steps of a partition by row. Of easy_to_hard the sizes are known, and not yet which rows."""
    sizes = [len(source.train) for source in sources]
    drawn = drawn_parts(args, sizes)
    if drawn is None:
        everything = list(range(len(sources)))
        step_sizes = partition.step_sizes(partition.rows_kept(sum(sizes), args.drop_hardest or 0.0), args.shares())
        if args.pool == "cumulative":
            step_sizes = list(accumulate(step_sizes))
        return [
            replace(_sketch_of_rows(index, size, sources, everything, ()), is_unranked=bool(args.rescore) and index > 1)
            for index, size in enumerate(step_sizes, 1)
        ]
    sketches = []
    for index, part in enumerate(drawn, 1):
        counts = [len(own) for own in partition.rows_by_source(part, sizes)]
        used = [number for number, count in enumerate(counts) if count]
        sketches.append(_sketch_of_rows(index, len(part), sources, used, tuple(counts[number] for number in used)))
    return sketches


def _sketch_of_rows(
    index: int, num_rows: int, sources: Sequence[LoadedSource], used: Sequence[int], source_rows: tuple[int, ...]
) -> Sketch:
    cfg = step_cfg(sources, used)
    return Sketch(
        name=f"step-{index}",
        cfg=cfg,
        num_rows=num_rows,
        heldout={name: len(rows) for name, rows in merged(source.heldout for source in sources).items()},
        num_dropped=None,
        total_num_steps=host_total_steps(num_rows, cfg.num_epochs, cfg.batch_size),
        settings={},
        source_rows=source_rows,
    )


def make_plan(cfg: DictDefault, block: SDPOConfig, steps: Sequence[Sketch]) -> Plan:
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
                num_rows=step.num_rows,
                num_dropped=step.num_dropped,
                num_heldout=sum(step.heldout.values()),
                num_optimizer_steps=step.cfg.max_steps or step.total_num_steps,
                rows_digest=step.rows_digest,
                reference=named.get(block.reference) or source_name({"path": block.reference}),
                policy_init=named[block.policy_init],
                settings=dict(step.settings),
                source_rows=step.source_rows,
                is_awaited=step.is_awaited,
                refresh=_rule(block.refresh_of(index)),
                is_unranked=step.is_unranked,
            )
        )
    compared = block.diagnostics.model_dump(exclude={"matrix"}) if block.diagnostics.matrix else {}
    return Plan(str(cfg.base_model), tuple(plans), tuple(heldout), block.export_steps, diagnostics=compared)


def _rule(args: RefreshArgs | None) -> RefreshRule | None:
    return None if args is None else RefreshRule(args.every, args.kl_above)
