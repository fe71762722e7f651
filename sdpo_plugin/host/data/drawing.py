"""The rows of each source that `sdpo.partition` keeps in its pool, where `max_rows` or `weights` leave some out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.plan import host_total_steps
from sdpo_plugin.pool import drawn_rows, drawn_sizes

if TYPE_CHECKING:
    from sdpo_plugin.host.data.loading import LoadedSource


def draw(block: SDPOConfig, sources: "Sequence[LoadedSource]") -> "list[LoadedSource]":
    """The sources with the rows that they keep, in their order; held-out sets are left as they are.

    Raises:
        ConfigError: a source would keep no row.
    """
    args = block.partition
    if args is None or not args.leaves_rows:
        return list(sources)
    sizes = [len(source.train) for source in sources]
    kept = drawn_sizes(sizes, args.max_rows, args.weights)
    return [
        _keeping(source, number, keep, args.drawn_by)
        for number, (source, keep) in enumerate(zip(sources, kept, strict=True))
    ]


def _keeping(source: "LoadedSource", number: int, keep: int, seed: int) -> "LoadedSource":
    size = len(source.train)
    if keep == size:
        return source
    return replace(
        source,
        train=source.train.select(drawn_rows(number, size, keep, seed)),
        total_num_steps=host_total_steps(keep, source.cfg.num_epochs, source.cfg.batch_size),
        num_left_out=size - keep,
    )
