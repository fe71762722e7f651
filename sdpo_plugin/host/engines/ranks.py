"""Ranks: rank 0 decides and the others are told."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState

from sdpo_plugin.errors import OutputError, RankZeroError, SDPOError
from sdpo_plugin.run_dir.sealed import names_in

T = TypeVar("T")

# Rank 0 seals checkpoints and writes models while the others wait for it. However large they are, no watchdog may take
# that for a dead rank; gloo notices by itself, and at once, where a rank is gone.
LONGEST_WAIT = timedelta(days=7)
_groups: dict[Any, Any] = {}


def waiting_group() -> dist.ProcessGroup | None:
    """The group, of all ranks, by which they agree and wait; None where there is one rank. All ranks ask together.

    Not the group that trains: NCCL ends a process whose peers keep it waiting for longer than `ddp_timeout`, and sends
    objects by way of the GPU's memory.
    """
    if PartialState().num_processes == 1:
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()  # of an earlier run in this process
        _groups[world] = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return cast(dist.ProcessGroup, _groups[world])


def on_rank_0(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0; every rank has its result. An error of ours or of the file system is every rank's.

    Without this the other ranks would wait for rank 0 in the next collective, for ever. Of any other error they are
    told that rank 0 had one; rank 0 itself raises it.
    """
    group = waiting_group()
    result: list[Any] = [None, RankZeroError("rank 0 stopped with an error of its own; its message says which.")]
    if PartialState().is_main_process:
        try:
            result = [action(), None]
        except (SDPOError, OSError) as known:
            result = [None, known]
        finally:
            _tell(result, group)
    else:
        _tell(result, group)
    value, error = result
    if error is not None:
        raise error
    return cast(T, value)


def on_every_rank(action: Callable[[], T]) -> list[T]:
    """Run ``action`` on every rank at once; every rank has all results, in the order of the ranks.

    An error of ours or of the file system is every rank's, as with ``on_rank_0``: that of the first rank that has one.
    Of another error the other ranks hear when the process that had it is gone.
    """
    try:
        mine: tuple[T | None, Exception | None] = (action(), None)
    except (SDPOError, OSError) as known:
        mine = (None, known)
    results = gather([mine])
    for _, error in results:
        if error is not None:
            raise error
    return [cast(T, value) for value, _ in results]


def _tell(objects: list[Any], group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.broadcast_object_list(objects, src=0, group=group)


def gather(mine: list[T]) -> list[T]:
    """The items of all ranks, on every rank, in the order of the ranks."""
    group = waiting_group()
    if group is None:
        return mine
    parts: list[list[T]] = [[] for _ in range(PartialState().num_processes)]
    dist.all_gather_object(parts, mine, group=group)
    return [item for part in parts for item in part]


def require_seen_by_all(directory: Path, what: str, output_dir: Path) -> None:
    """Refuse a file below ``directory`` that rank 0 sees and another rank does not: they share no file system.

    Args:
        directory: of the run.
        what: the end of "which …", for the message.
        output_dir: of the run.

    Raises:
        OutputError: it names the rank and the file.
    """
    names = on_rank_0(lambda: names_in(directory))
    missing = gather([[directory / name for name in names if not (directory / name).is_file()]])
    for rank, paths in enumerate(missing):
        if paths:
            raise OutputError(
                f"rank {rank} does not see {paths[0]}, which {what}: the machines do not share "
                f"output_dir: {str(output_dir)!r}. Put it on a file system that all of them see, or copy it from "
                "the first machine to the others, and run the same command."
            )


def place() -> tuple[int, int]:
    """This process's rank, and the number of ranks."""
    return PartialState().process_index, PartialState().num_processes


def largest(mine: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    group = waiting_group()
    if group is None:
        return mine
    number = torch.tensor(mine)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=group)
    return int(number)


def wait_for_all() -> None:
    """Come back when every rank has come here, however long one of them writes."""
    group = waiting_group()
    if group is not None:
        dist.barrier(group=group)
