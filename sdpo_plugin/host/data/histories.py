"""Raw rows whose answers are to different prompts: both are whole conversations, and the host keeps one history."""

from collections.abc import Iterable
from typing import Any

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
        found = _differing(rows, entry)
        numbers += found[: EXAMPLES - len(numbers)]
        count += len(found)
        of += len(rows)
    return Found(count, tuple(numbers), of)


def _differing(rows: Dataset, entry: DictDefault) -> list[int]:
    fields = [entry.field_chosen or "chosen", entry.field_rejected or "rejected"]
    names = dict(entry.message_property_mappings or {})
    read = [names.get(name, name) for name in ("role", "content")]
    # TRL's own form: an answer may have several messages, and the prompt is a column of its own.
    if entry.type is None and "prompt" in rows.column_names:
        return []
    if any(not _is_list(rows, field) for field in fields):
        return []
    found = []
    number = 0
    for batch in rows.select_columns(fields).iter(1000):
        for chosen, rejected in zip(*(batch[field] for field in fields), strict=True):
            if chosen and rejected and _read(chosen[:-1], read) != _read(rejected[:-1], read):
                found.append(number)
            number += 1
    return found


def _read(history: list[Any], fields: list[str]) -> list[Any]:
    """What the host reads of messages; those of another shape as they are."""
    return [
        [message.get(field) for field in fields] if isinstance(message, dict) and fields[1] in message else message
        for message in history
    ]


def _is_list(rows: Dataset, field: str) -> bool:
    """`datasets` has two ways to write a column of lists."""
    column = rows.features.get(field)
    return isinstance(column, list) or type(column).__name__ in ("List", "LargeList")
