"""A row that remembers what is read of it, so that a message can name the field."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trace:
    """A record of what a prompt strategy reads of one row.

    Attributes:
        fields: top-level fields it has asked for, in order.
        missing: where it asked for a field that is not there, with the field and those that are.
        nulls: places it has read that hold nothing.
    """

    fields: dict[str, None] = field(default_factory=dict)
    missing: tuple[str, str, tuple[str, ...]] | None = None
    nulls: list[str] = field(default_factory=list)


class Read(dict[str, Any]):
    """A dict, at any depth of a row, that tells a trace what is asked of it."""

    def __init__(self, value: Mapping[str, Any], trace: Trace, place: str = "") -> None:
        super().__init__({key: _reading(item, trace, _join(place, key)) for key, item in value.items()})
        self._trace, self._place = trace, place

    def __getitem__(self, key: str) -> Any:
        self._ask(key)
        if not dict.__contains__(self, key):
            self._trace.missing = (self._place, key, tuple(dict.keys(self)))
        value = super().__getitem__(key)
        if value is None:
            self._trace.nulls.append(_join(self._place, key))
        return value

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def __contains__(self, key: object) -> bool:
        self._ask(key)
        return super().__contains__(key)

    def keys(self) -> Any:
        return _Keys(self)

    def _ask(self, key: object) -> None:
        if not self._place:
            self._trace.fields.setdefault(str(key))


class _Keys:
    def __init__(self, row: Read) -> None:
        self._row = row

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._row)


def _reading(value: Any, trace: Trace, place: str) -> Any:
    if isinstance(value, Mapping):
        return Read(value, trace, place)
    if isinstance(value, list):
        return [_reading(item, trace, f"{place}[{index}]") for index, item in enumerate(value)]
    return value


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else str(key)


class _Anything(str):
    """Text, list and dict at once, equal to a role that every strategy knows."""

    def __new__(cls) -> "_Anything":
        return super().__new__(cls, "user")

    def __getitem__(self, key: Any) -> "_Anything":
        return self

    def __iter__(self) -> Iterator[str]:
        return iter([self])

    def get(self, key: str, default: Any = None) -> "_Anything":
        return self


class _Imagined(Read):
    """A row that has every field, or, to a strategy that asks first, none."""

    def __init__(self, trace: Trace, has_all: bool) -> None:
        super().__init__({}, trace)
        self._has_all = has_all

    def __getitem__(self, key: str) -> Any:
        self._ask(key)
        return dict.get(self, key, _Anything())

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]

    def __contains__(self, key: object) -> bool:
        self._ask(key)
        return self._has_all


def fields_read(transform: Callable[[Any], Any], errors: tuple[type[BaseException], ...]) -> list[str]:
    """The top-level fields that a prompt strategy asks for, found out by letting it read rows that have none and all.

    Args:
        transform: the strategy, of one row.
        errors: what it may raise on such rows; the fields until then are known.
    """
    trace = Trace()
    for has_all in (False, True):
        try:
            transform(_Imagined(trace, has_all))
        except errors:
            continue
    return list(trace.fields)
