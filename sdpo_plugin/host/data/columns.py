"""Columns of tokenized rows: the token ids, what is known of them, the reference that TRL's loss reads."""

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from sdpo_plugin import rows
from sdpo_plugin.rows import Int, RowFacts, facts_of
from sdpo_plugin.tables import LogProbTable

IDS = ["prompt_ids", "chosen_ids", "rejected_ids"]
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
_NOTHING = np.zeros(0, dtype=np.int64)
_known: WeakKeyDictionary[Dataset, RowFacts] = WeakKeyDictionary()  # held-out rows are asked about again and again


def row_facts(dataset: Dataset) -> RowFacts:
    """Keys and lengths of all rows, in one pass over the memory-mapped columns, as long as the data set is there."""
    if dataset not in _known:
        parts = [facts_of(columns) for columns in token_columns(dataset)]
        _known[dataset] = rows.concatenate(parts or [facts_of([(_NOTHING, _NOTHING)] * len(IDS))])
    return _known[dataset]


def token_columns(dataset: Dataset) -> Iterator[list[tuple[Int, Int]]]:
    """Batches of the memory-mapped rows: for each of ``IDS`` the ids of all rows, and the tokens of each row."""
    for batch in dataset.select_columns(IDS).with_format("arrow").iter(1000):
        columns = [batch.column(name).combine_chunks() for name in IDS]
        yield [(_integers(column.flatten()), _integers(pc.list_value_length(column))) for column in columns]


def largest_id(dataset: Dataset) -> int:
    """The largest token id of all rows."""
    largest = 0
    for batch in dataset.select_columns(IDS).with_format("arrow").iter(1000):
        for name in IDS:
            found = pc.max(batch.column(name).combine_chunks().flatten()).as_py()
            largest = max(largest, found or 0)
    return largest


def with_reference(dataset: Dataset, table: LogProbTable) -> Dataset:
    """The data set with the columns that TRL's loss reads the reference from."""
    return dataset.add_column(REFERENCE[0], table.chosen).add_column(REFERENCE[1], table.rejected)


def with_row_numbers(dataset: Dataset) -> Dataset:
    """The data set with the number of each row in the place of its reference, for a reference that moves."""
    numbers = np.arange(len(dataset), dtype=np.int64)
    return dataset.add_column(REFERENCE[0], numbers).add_column(REFERENCE[1], numbers)


def concatenate(datasets: Sequence[Dataset]) -> Dataset | None:
    """All rows of several prepared sets, or None where there are none."""
    return concatenate_datasets(list(datasets)) if datasets else None


def _integers(array: pa.Array) -> NDArray[np.int64]:
    values: NDArray[np.int64] = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return values
