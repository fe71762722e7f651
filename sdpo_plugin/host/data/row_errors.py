"""The row of a source that cannot be read, and why: after a failure the host's own code tries them one by one."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from axolotl.utils.data import rl
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.host.data.reading import Read, Trace, fields_read

# What prompt strategies, templates and tokenizers raise on a row that is not right.
ROW_ERRORS = (ValueError, TypeError, LookupError, AttributeError, TemplateError)
SIDES = ("prompt", "chosen", "rejected")
Row = dict[str, Any]
SHAREGPT_HINT = (
    "Messages of ShareGPT (from, value) need a type with formats of its own; see the table of types in "
    "example_configs/README.md. "
)
# The host's prompt strategies that look for the answer in what the chat template has written.
SEARCHES = "type: chat_template"
TRIMMED_HINT = (
    "The host looks for the answer in what the chat template has written, and finds none that the template trims: "
    "strip the white space around it. "
)


@dataclass(frozen=True)
class Strategy:
    """The host's way from the rows of one entry to prompt, chosen and rejected.

    Attributes:
        name: the `type` as a message shows it.
        transform: of one row.
        removed: columns that are not kept.
        check: raises, or not, on what was made of a row.
    """

    name: str
    transform: Callable[[Any], Any]
    removed: tuple[str, ...]
    check: Callable[[Row], Any]

    @classmethod
    def of(
        cls, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, index: int, columns: list[str]
    ) -> "Strategy | None":
        """That of entry ``index`` of ``cfg.datasets``, as the host finds it; None: the host knows no such type."""
        kind = cfg.datasets[index].type
        loaded: Any = (lambda row: row, {})
        if kind:
            loaded = rl.load_dpo("user_defined.default" if isinstance(kind, dict) else kind, cfg, dataset_idx=index)
        if loaded is None:
            return None
        transform, options = loaded if isinstance(loaded, tuple) else (loaded, {})
        if "tokenizer" in inspect.signature(transform).parameters:
            transform = partial(transform, tokenizer=tokenizer)
        removed = options.get("remove_columns", ())
        raises = (cfg.excess_length_strategy or "drop").lower() == "raise"
        check = rl._raise_on_long_sequences if raises else rl._drop_long_sequences
        return cls(
            name="a type of your own" if isinstance(kind, dict) else f"type: {kind}" if kind else "no type",
            transform=transform,
            removed=tuple(columns) if removed == "__all__" else tuple(removed),
            check=partial(check, rl=cfg.rl, tokenizer=tokenizer, sequence_len=cfg.sequence_len),
        )

    def made_of(self, row: Mapping[str, Any]) -> Row:
        """The row that the host keeps."""
        kept = {key: value for key, value in row.items() if key not in self.removed}
        return {**kept, **self.transform(row)}


def first_bad_row(rows: Dataset, strategy: Strategy) -> str | None:
    """The first row that the host cannot read, and why; None where it can read all."""
    for number, row in enumerate(rows):
        trace = Trace()
        made: Row = {}
        try:
            made = strategy.made_of(Read(row, trace))
            strategy.check(made)
        except ROW_ERRORS as error:
            return _describe(strategy, number, row, _cause(error, row, made, trace))
    return None


def first_null_as_text(rows: Dataset, strategy: Strategy) -> str | None:
    """A row with a field that is null and would be written as the word None; None where there is no such row.

    Asked only of rows that the host has read; of each field, the first row that has it null is looked at.
    """
    for number in sorted(set().union(*(first_nulls(rows.data.column(name)) for name in rows.column_names))):
        row, trace = rows[number], Trace()
        words = _nones(strategy.made_of(Read(row, trace)))
        for place in trace.nulls:
            top = re.split(r"[.\[]", place)[0]
            if _nones(strategy.made_of(Read({**row, top: _without_nulls(row[top])}, Trace()))) < words:
                return _describe(strategy, number, row, f"would be read with the word None: field {place!r} is null")
    return None


def _describe(strategy: Strategy, number: int, row: Row, cause: str) -> str:
    read = list(SIDES) if strategy.name == "no type" else fields_read(strategy.transform, ROW_ERRORS)
    hint = SHAREGPT_HINT if _holds_sharegpt(row) else ""
    hint += TRIMMED_HINT if strategy.name.startswith(SEARCHES) and " that is empty: " in cause else ""
    subject = "the host without a type" if strategy.name == "no type" else strategy.name.removeprefix("type: ")
    return (
        f"row {number} {cause} ({strategy.name}). Fields found: {', '.join(row)}. Fields that {subject} reads: "
        f"{', '.join(read)}. {hint}"
    )


def _cause(error: BaseException, row: Row, made: Row, trace: Trace) -> str:
    if isinstance(error, KeyError):
        return _missing(error.args[0], row, trace)
    if made:
        return _unfit(made, error)
    if trace.nulls:
        return f"cannot be read: field {trace.nulls[-1]!r} is null"
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    where = f" (at field {list(trace.fields)[-1]!r})" if trace.fields else ""
    return f"cannot be read{where}: {reason}"


def _missing(key: Any, row: Row, trace: Trace) -> str:
    if trace.missing is None or trace.missing[1] != key:  # a role that the strategy does not know
        place = next((place for place, value in _leaves(row) if value == key), None)
        return f"has the value {key!r} at {place or 'a place'} that is none of those known"
    place, _, found = trace.missing
    return f"has no field {key!r}" if not place else f"has no {key!r} in {place!r}, which holds: {', '.join(found)}"


def _unfit(made: Row, error: BaseException) -> str:
    """Why the host will not take what was made of a row."""
    said = " ".join(str(error).split()).rstrip(".")
    for side in SIDES:
        value = made.get(side)
        if side not in made:
            return f"has no field {side!r}: {said}"
        if value is None or value == "":
            return f"has a field {side!r} that is {'null' if value is None else 'empty'}: {said}"
    odd = next((side for side in SIDES if not isinstance(made[side], str)), None)
    kind = "" if odd is None else f", whose field {odd!r} is a {type(made[odd]).__name__} and no text,"
    return f"{kind} cannot be read: {said}".removeprefix(", ")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    else:
        yield place, value


def _holds_sharegpt(row: Row) -> bool:
    names = {place.rpartition(".")[2] for place, _ in _leaves(row)}
    return {"from", "value"} <= names


def _nones(made: Row) -> int:
    return sum(made[side].count("None") for side in SIDES if isinstance(made.get(side), str))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return "" if value is None else value


def first_nulls(column: pa.ChunkedArray) -> set[int]:
    """For each field at any depth of a column: the first row in which it is null, where there is one.

    Chunk by chunk: in one piece a column of 2 GiB of text has no offsets, and a smaller one is copied into memory.
    """
    found: dict[tuple[int, ...], int] = {}
    first = 0
    for chunk in column.chunks:
        for field, row in _nulls(chunk):
            found.setdefault(field, first + row)
        first += len(chunk)
    return set(found.values())


def _nulls(array: pa.Array, rows: Any = None, field: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], int]]:
    """The first row of a chunk in which a field is null, for each that has one; fields are told by the way to them."""
    if array.null_count:
        first = pc.index(pc.is_null(array), True).as_py()
        yield field, first if rows is None else rows[first].as_py()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        parents = pc.list_parent_indices(array)
        yield from _nulls(array.flatten(), parents if rows is None else rows.take(parents), (*field, 0))
    if pa.types.is_struct(array.type):
        for index in range(array.type.num_fields):
            yield from _nulls(pc.struct_field(array, [index]), rows, (*field, index))
