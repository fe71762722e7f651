"""JSON files of a run, read back: the types that were written, or the reason why not. Nothing in them is believed."""

import json
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""What a dataclass that is read back has as ``__pydantic_config__``."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
SHOWN_LETTERS = 60


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError: the file is missing, or cannot be read.
        ValueError: it is torn, no UTF-8, nested too deep, has a number that is none, or is no object.
    """
    value = from_json(path.read_bytes(), allow_inf_nan=False)
    if not isinstance(value, dict):
        raise ValueError(f"{_brief(value)} is no JSON object")
    return value


def checked(kind: type[T], value: Mapping[str, Any]) -> T:
    """``value`` as a dataclass, with the types that it declares.

    Raises:
        ValueError: a key is missing or unknown, or a value is of another type; the first one is named.
    """
    try:
        adapter = _adapter(kind)  # type: ignore[arg-type]  # a class can be hashed
        found: T = adapter.validate_json(json.dumps(value, allow_nan=False), strict=True)
        return found
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    location = first["loc"][:-2] if first["loc"][-1:] == ("[key]",) else first["loc"]
    where = ".".join(map(str, location))
    if "error" in first.get("ctx", {}):  # raised here, in words that name the value
        return f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {_brief(first['input'])}: {first['msg']}"


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"
