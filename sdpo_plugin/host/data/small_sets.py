"""Small sets are mapped and written in the run's own process: worker processes take seconds to start.

The host gives every map as many workers as the machine has cores, and writes a prepared set by processes that import
it anew, whatever the number of rows.
"""

import copy
from collections.abc import Callable
from typing import Any

from axolotl.utils.datasets import get_default_process_count
from datasets import Dataset

FEW_TO_MAP = 2_000  # rows; tokenizing takes about a millisecond each
FEW_TO_WRITE = 50_000


def workers(asked: int | None, rows: int) -> int | None:
    """Worker processes for a map, as `datasets` takes them: 0 for none.

    Args:
        asked: `dataset_num_proc`; a number that is not the host's default is what the user wants.
        rows: of all sets that are mapped.
    """
    return 0 if rows <= FEW_TO_MAP and asked == get_default_process_count() else asked


def written_here(save: Callable[..., None]) -> Callable[..., None]:
    """The host's ``save_preprocessed_dataset``, that starts no process to write a small set."""

    def save_preprocessed_dataset(cfg: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        save(cfg, _writing_here(dataset) if _is_small(dataset) else dataset, *args, **kwargs)

    return save_preprocessed_dataset


def _is_small(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and len(dataset) <= FEW_TO_WRITE


def _writing_here(dataset: Dataset) -> Dataset:
    """A copy whose ``save_to_disk`` writes in this process."""
    made = copy.copy(dataset)
    made.save_to_disk = lambda *args, **kwargs: dataset.save_to_disk(*args, **(kwargs | {"num_proc": None}))
    return made
