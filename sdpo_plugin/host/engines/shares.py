"""Files that all ranks see, read by all of them at once: each its share."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sdpo_plugin.host.engines import ranks
from sdpo_plugin.run_dir.sealed import Files, names_in, written

T = TypeVar("T")


class AllRanks:
    """The ``Ranks`` of a run."""

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """By the group in which ranks may wait for long."""
        return ranks.on_rank_0(action)

    def written_by_all(self, directory: Path) -> Files:
        """What each rank sees as rank 0 does."""
        return written_by_all(directory)


def written_by_all(directory: Path) -> Files:
    """The files of a directory on disk, with their digests: every rank reads its share of them, at the same time.

    A rank that sees another file than rank 0 does, or none, leaves it: they share no file system, or not yet what was
    written. The seal reads what is left.

    Raises:
        OSError: a file cannot be read or synced.
    """
    seen = ranks.on_rank_0(lambda: [(name, _state(directory / name)) for name in names_in(directory)])
    largest_first = sorted(seen, key=lambda file: file[1], reverse=True)
    rank, num_ranks = ranks.place()
    share = largest_first[rank::num_ranks]
    parts = ranks.on_every_rank(
        lambda: written(directory, [name for name, state in share if _state(directory / name) == state])
    )
    return {name: facts for part in parts for name, facts in part.items()}


def _state(path: Path) -> tuple[int, int]:
    """Bytes, and the time of the last change; (-1, -1) where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
