"""The documents are right about keys, defaults and values of the `sdpo:` block, and their links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sdpo_plugin.args import DiagnosticsArgs, SDPOConfig
from sdpo_plugin.lm_eval_args import LMEvalArgs
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.steps_args import HookRows, StepArgs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "example_configs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS: dict[str, type[BaseModel]] = {
    "## `sdpo`": SDPOConfig,
    "## `sdpo.steps`": StepArgs,
    "## `reference_refresh`": RefreshArgs,
    "## `from_hook`": HookRows,
    "## `sdpo.partition`": PartitionArgs,
    "## `sdpo.diagnostics`": DiagnosticsArgs,
    "## `sdpo.lm_eval`": LMEvalArgs,
}
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def rows(section: str) -> dict[str, tuple[str, str]]:
    """The table below a heading of docs/configuration.md: value and default by key, in its order."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^{re.escape(section)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| ", body, re.MULTILINE)
    return {key: (value, default) for key, value, default in found}


def as_yaml(value: Any) -> Any:
    """A value as a config has it."""
    return str(value).lower() if isinstance(value, bool) else value


def default_of(field: FieldInfo) -> str:
    """The default as the table shows it: the value, or what the description says in place of None."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    if field.default is not None:
        return f"`{as_yaml(field.default)}`"
    said = re.search(r"Default: (.*?)\.?$", field.description or "")
    return said.group(1) if said else "not set"


def parts(annotation: Any) -> Iterator[Any]:
    """The annotation and every part of it."""
    yield annotation
    for part in (*get_args(annotation), *getattr(annotation, "metadata", ())):
        if get_origin(annotation) is not Literal:
            yield from parts(part)


def constraints(field: FieldInfo) -> set[str]:
    """The text that the value's column has to show: the values of a closed list, the bounds of a number."""
    found = set()
    for part in (part for source in (field.annotation, *field.metadata) for part in parts(source)):
        if get_origin(part) is Literal:
            found |= {f"`{as_yaml(value)}`" for value in get_args(part)}
        found |= {f"{sign} {getattr(part, name)}" for name, sign in SIGNS.items() if hasattr(part, name)}
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_table_has_every_key_in_order(section: str) -> None:
    assert list(rows(section)) == list(SECTIONS[section].model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_table_has_the_defaults(section: str) -> None:
    said = {key: default for key, (_, default) in rows(section).items()}
    assert said == {key: default_of(field) for key, field in SECTIONS[section].model_fields.items()}


@pytest.mark.parametrize("section", SECTIONS)
def test_table_has_values_and_bounds(section: str) -> None:
    for key, field in SECTIONS[section].model_fields.items():
        shown = rows(section)[key][0]
        assert {part for part in constraints(field) if part not in shown} == set(), key


def test_bounds_are_found() -> None:
    """Shows that the comparison above has something to compare."""
    assert constraints(StepArgs.model_fields["dpo_label_smoothing"]) == {"≥ 0", "< 0.5"}
    assert constraints(SDPOConfig.model_fields["export_steps"]) == {"`all`", "`last`"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page, which links into it can name: its headings, rewritten."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
