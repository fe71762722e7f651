"""Raw rows whose answers are to different prompts: both are whole conversations, and the host keeps one history."""

from collections.abc import Iterable

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from sdpo_plugin.pair_checks import EXAMPLES, Found


def other_prompts(parts: Iterable[tuple[Dataset, DictDefault]]) -> Found:
    """The rows of all entries in which chosen and rejected are lists of messages that differ before the last one.

    Args:
        parts: the rows of each entry as its files have them, with the entry.
    """
    numbers: list[int] = []
    count = of = 0
    for rows, entry in parts:
        found = _differing(rows, [entry.field_chosen or "chosen", entry.field_rejected or "rejected"])
        numbers += found[: EXAMPLES - len(numbers)]
        count += len(found)
        of += len(rows)
    return Found(count, tuple(numbers), of)


def _differing(rows: Dataset, fields: list[str]) -> list[int]:
    if any(not _is_list(rows, field) for field in fields):
        return []
    found = []
    number = 0
    for batch in rows.select_columns(fields).iter(1000):
        for chosen, rejected in zip(*(batch[field] for field in fields), strict=True):
            if chosen and rejected and chosen[:-1] != rejected[:-1]:
                found.append(number)
            number += 1
    return found


def _is_list(rows: Dataset, field: str) -> bool:
    """`datasets` has two ways to write a column of lists."""
    column = rows.features.get(field)
    return isinstance(column, list) or type(column).__name__ in ("List", "LargeList")
