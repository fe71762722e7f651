"""JSON records of a run: written with version and digest, read back as the types that were written, or the reason why
not. Nothing in them is believed."""

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from sdpo_plugin import digests
from sdpo_plugin.run_dir.files import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
SHOWN_LETTERS = 60


def write_stored(path: Path, record: "DataclassInstance", schema_version: int) -> str:
    """Write a dataclass, atomically; return the digest of all that it says.

    Raises:
        ValueError: it holds a number that is not finite.
        OSError: it cannot be written.
    """
    content = {"schema_version": schema_version, **asdict(record)}
    digest = digests.of_json(content)
    write_json(path, {**content, "digest": digest})
    return digest


def read_stored(path: Path, kind: type[T], schema_version: int) -> tuple[T, str]:
    """The record that ``write_stored`` wrote, and its digest.

    Raises:
        OSError: the file is missing, or cannot be read.
        ValueError: it is torn or changed, of another schema version, or is not what ``kind`` declares.
    """
    content = _read_object(path)
    digest = content.pop("digest", None)
    if content.get("schema_version") != schema_version:
        raise ValueError("another schema version")
    if digests.of_json(content) != digest:
        raise ValueError("its content does not fit its digest")
    del content["schema_version"]
    return checked(kind, content), digest


def _read_object(path: Path) -> dict[str, Any]:
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
