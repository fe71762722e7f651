"""Rows with the number by which a column of the data rates them, carried through all that the host does with rows.

The host's transforms drop columns, and it shuffles, drops and prepares rows after that: so the transform of each entry
gives the number once more, under a name of our own, and from there on it is a column of the row like any other.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from sdpo_plugin import digests
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.prepared import RawReader
from sdpo_plugin.host.data.read_errors import source_name

RATING = "sdpo_rating"
TEXTS = ("prompt", "chosen", "rejected")  # the columns that the host prepares


class RatedReader(RawReader):
    """Reads the entries for the host, and refuses rows that the column does not rate.

    Args:
        cfg: as for ``RawReader``.
        column: of the data.
        step: whose rows they are.
    """

    def __init__(self, cfg: DictDefault, column: str, step: str) -> None:
        super().__init__(cfg)
        self._column, self._step = column, step

    def load(self, entry: DictDefault, use_auth_token: Any, streaming: bool = False) -> Dataset | DatasetDict:
        """In place of the host's ``load_dataset_with_config``.

        Raises:
            DataError: there is no such column, it does not hold numbers, or a row has none.
        """
        loaded = super().load(entry, use_auth_token, streaming)
        rows = self.parts[-1]
        require_numbers(rows, self._column, f"step {self._step}: {source_name(entry)}")
        if entry.type:
            return loaded
        return rows.add_column(RATING, _numbers(rows, self._column))  # which the host does not transform


def prepared_apart(cfg: DictDefault, column: str) -> None:
    """Have the host keep what it prepares with this column by itself: its name for a prepared set knows of none."""
    folder = Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH)
    cfg.dataset_prepared_path = str(folder / f"rated-by-{digests.of_json(column)[:16]}")


def require_numbers(rows: Dataset, column: str, source: str) -> None:
    """Refuse rows that the column does not rate.

    Raises:
        DataError: there is no such column, it does not hold numbers, or a row has none.
    """
    said = f"{source}: sdpo.partition.column: {column!r}"
    if column not in rows.column_names:
        raise DataError(f"{said} is no column of these rows. Columns found: {', '.join(rows.column_names)}. Set one.")
    kind = rows.data.schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"{said} does not hold numbers but values of type {kind}: row 0 has {rows[0][column]!r}. Set a column of "
            "numbers, or write numbers there."
        )
    values = _numbers(rows, column)
    bad = np.flatnonzero(~np.isfinite(values)).tolist()
    if bad:
        raise DataError(
            f"{said} is {rows[bad[0]][column]!r} in row {bad[0]}, and every row needs a finite number "
            f"({len(bad)} of {len(rows)} have none). Rows are counted from 0. Mend them, or take them out."
        )


def _numbers(rows: Dataset, column: str) -> NDArray[np.float64]:
    """The numbers of a column, shape (N,); what is null is NaN."""
    batches = rows.select_columns([column]).with_format("arrow").iter(10_000)
    parts = [pc.cast(batch.column(column), pa.float64(), safe=False).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0), *parts])


def rating(load: Callable[..., Any], column: str) -> Callable[..., Any]:
    """The host's ``load_dpo``, whose transforms give the number of a row as well."""

    def load_dpo(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        if loaded is None:
            return None
        transform, options = loaded if isinstance(loaded, tuple) else (loaded, {})

        @functools.wraps(transform)  # the host looks at its parameters
        def rated(row: Any, **kwargs: Any) -> dict[str, Any]:
            number = float(row[column])  # before the transform, which may change the row
            return {**transform(row, **kwargs), RATING: number}

        return rated, options

    return load_dpo


def ratings(rows: Dataset) -> NDArray[np.float64]:
    """The numbers that rows were rated with, shape (N,)."""
    return _numbers(rows, RATING)


def unrated(rows: Dataset) -> Dataset:
    """Rows without their numbers, as held-out rows are."""
    return rows.remove_columns([RATING]) if RATING in rows.column_names else rows


def require_one_rating(parts: Sequence[Dataset], column: str, source: str) -> None:
    """Refuse a pair of texts with two numbers, where the host was asked for no duplicates: it takes them for two rows.

    Raises:
        DataError: it names the pair by its first words.
    """
    known: dict[tuple[str, ...], float] = {}
    for rows in parts:
        for row in rows.select_columns([*TEXTS, RATING]):
            key = tuple(str(row[name]) for name in TEXTS)
            if known.setdefault(key, row[RATING]) != row[RATING]:
                raise DataError(
                    f"{source}: sdpo.partition.column: {column!r} is {known[key]} in one row and {row[RATING]} in "
                    f"another of the same texts, whose prompt begins {key[0][:80]!r}, and with "
                    "dataset_exact_deduplication: true one of the two would have to go. Take one out, or set "
                    "dataset_exact_deduplication: false."
                )
