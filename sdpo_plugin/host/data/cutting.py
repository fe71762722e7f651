"""The pool of all sources cut into steps, as `sdpo.partition` says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin import estimates, measures, partition
from sdpo_plugin.host.data.planning import drawn_parts, name_of
from sdpo_plugin.host.data.rated import ratings
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.plan import OrderedSource, RatedSource
from sdpo_plugin.tables import LogProbTable


def _no_rows() -> partition.Rows:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Cut:
    """A pool that is cut.

    Attributes:
        parts: the rows of each step in the pool; with `rescore` of the steps that are ranked.
        to_rank: rows of each step after these, which the model before it ranks.
        hardest: rows that no step has because they are too hard.
        ordering: the sources, easy to hard, where M_0's log-probs have ordered them.
        rated: the sources, easy to hard, where a column of the data has.
    """

    parts: partition.Partition
    to_rank: tuple[int, ...] = ()
    hardest: partition.Rows = field(default_factory=_no_rows)
    ordering: tuple[OrderedSource, ...] = ()
    rated: tuple[RatedSource, ...] = ()

    def left(self, num_rows: int) -> partition.Rows:
        """The rows of a pool that are still to be ranked, ascending."""
        return partition.rows_in_none((*self.parts, self.hardest), num_rows)


def cut_pool(
    args: PartitionArgs,
    sources: Sequence[TokenizedSource],
    base_tables: Sequence[LogProbTable],
    picked: Sequence[partition.Rows],
) -> Cut:
    """Cut the pool of the sources.

    Args:
        args: `sdpo.partition`.
        sources: one per entry of `datasets:`.
        base_tables: log-probs of each source under M_0, where they order rows or sources.
        picked: with `rescore`, the rows of the steps after the first that have been ranked.

    Raises:
        ConfigError: a step would have no rows.
    """
    sizes = [len(source.train) for source in sources]
    drawn = drawn_parts(args, sizes)
    if drawn is not None:
        return Cut(drawn)
    own = [_own_eases(args, source, table) for source, table in zip_longest(sources, base_tables)]
    if args.unit == "row":
        return _cut_rows(args, np.concatenate(own), picked)
    names = [name_of(source) for source in sources]
    if args.column is not None:
        order, parts = partition.easy_to_hard_sources(sizes, [float(ease.mean()) for ease in own])
        means = [float(ratings(source.train).mean()) for source in sources]
        return Cut(parts, rated=tuple(RatedSource(names[s], sizes[s], means[s]) for s in order))
    intervals = [estimates.wilson(int((gamma > 0).sum()), len(gamma)) for gamma in own]
    order, parts = partition.easy_to_hard_sources(sizes, [interval.value for interval in intervals])
    ranks = [OrderedSource(names[s], sizes[s], intervals[s].value, intervals[s].low, intervals[s].high) for s in order]
    return Cut(parts, ordering=tuple(ranks))


def _cut_rows(args: PartitionArgs, eases_: NDArray[np.floating], picked: Sequence[partition.Rows]) -> Cut:
    drop, cumulative = args.drop_hardest or 0.0, args.pool == "cumulative"
    parts = partition.easy_to_hard_rows(eases_, args.shares(), drop, cumulative=cumulative)
    hardest = partition.rows_in_none(parts, len(eases_))
    if not args.rescore:
        return Cut(parts, hardest=hardest)
    ranked = (parts[0], *picked)
    return Cut(ranked, tuple(len(rows) for rows in parts[len(ranked) :]), hardest)


def _own_eases(args: PartitionArgs, source: TokenizedSource, table: LogProbTable | None) -> NDArray[np.floating]:
    if args.column is not None:
        return ratings(source.train) if args.descending is not False else -ratings(source.train)
    assert table is not None, "M_0 has looked at every source"
    return eases(args, table)


def eases(args: PartitionArgs, table: LogProbTable) -> NDArray[np.floating]:
    """How easy each row is for the model of a table: γ, shape (N,)."""
    return measures.gamma_per_token(table) if args.score == "log_ratio_per_token" else measures.gamma(table)
