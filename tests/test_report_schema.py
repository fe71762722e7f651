"""`report.json` against its published schema, of every kind of run; and the schema against itself."""

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sdpo_plugin.pair_checks import KINDS
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.plan import LeftOut, OrderedSource, Overlap, RatedSource
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import die
from tests.fakes import CALLS, EXTERNAL, FakeHost, make_plan, run
from tests.golden.made import golden_report

SCHEMA = json.loads((files("sdpo_plugin.report") / "report.schema.json").read_text(encoding="utf-8"))
UNITS = ("nat", "count", "from 0 to 1", "from -1 to 1", "second", "no unit", "same unit", "in the unit", "sum to 1")


def wrong(report: dict[str, Any]) -> list[str]:
    """What the schema finds wrong with a report, as it is read back from its file."""
    found = Draft202012Validator(SCHEMA).iter_errors(json.loads(json.dumps(report, allow_nan=False)))
    return [f"{error.json_path}: {error.message}" for error in found]


def finished(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)


def with_diagnostics(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir, make_plan(diagnostics=host.diagnostics))


def without_held_out(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir, make_plan(heldout={}))


def external(run_dir: RunDir) -> None:
    run(FakeHost(early=[EXTERNAL]), run_dir, make_plan(reference=EXTERNAL))


def one_step(run_dir: RunDir) -> None:
    run(FakeHost([[1.0]]), run_dir, make_plan([[1.0]]))


def damaged(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    for path in [*run_dir.folder.rglob("*.safetensors"), *run_dir.histories.iterdir()]:
        path.write_bytes(b"")


@pytest.mark.parametrize("make", [finished, with_diagnostics, without_held_out, external, one_step, damaged])
def test_report_is_what_the_schema_says(run_dir: RunDir, make: Callable[[RunDir], None]) -> None:
    make(run_dir)
    assert wrong(build_report(run_dir)) == []


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("early tables", "report")])
def test_report_of_a_dead_run_is_what_the_schema_says(run_dir: RunDir, call: str) -> None:
    die(run_dir, call)
    assert wrong(build_report(run_dir)) == []


def test_report_with_everything_in_it_is_what_the_schema_says(run_dir: RunDir) -> None:
    report = golden_report(run_dir.root)
    empty = [
        key
        for key in ("ordering", "overlaps", "warnings", "verdicts", "changes", "versions", "lm_eval", "data_checks")
        if not report[key]
    ]
    assert (wrong(report), empty) == ([], [])


def test_report_of_a_plan_with_all_its_words_is_what_the_schema_says(run_dir: RunDir) -> None:
    """`sdpo.partition` as it is written, key by key."""
    assert set(SCHEMA["properties"]["partition"]["properties"]) == set(PartitionArgs.model_fields)
    (found,) = [field for path, field in fields(SCHEMA) if path.endswith("sources.items.found")]
    assert KINDS.keys() == found["properties"].keys() == set(found["required"])
    assert OrderedSource.__dataclass_fields__.keys() == SCHEMA["properties"]["ordering"]["items"]["properties"].keys()
    assert LeftOut.__dataclass_fields__.keys() == SCHEMA["properties"]["left_out"]["items"]["properties"].keys()
    assert RatedSource.__dataclass_fields__.keys() == SCHEMA["properties"]["rated"]["items"]["properties"].keys()
    assert Overlap.__dataclass_fields__.keys() == SCHEMA["properties"]["overlaps"]["items"]["properties"].keys()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda report: report.update(new=1), "('new' was unexpected)", id="unknown-key"),
        pytest.param(lambda report: report.pop("models"), "'models' is a required property", id="missing-key"),
        pytest.param(lambda report: report["steps"][0].update(new=1), "('new' was unexpected)", id="in-a-step"),
        pytest.param(lambda report: report["steps"][0].update(num_rows=-1), "-1 is less than the minimum", id="count"),
        pytest.param(
            lambda report: report["steps"][0]["curve"].update(lr=[]), "('lr' was unexpected)", id="in-a-curve"
        ),
        pytest.param(lambda report: report["train"].update(acc=[]), "('acc' was unexpected)", id="in-a-block"),
        pytest.param(
            lambda report: report["heldout"]["reference_free_accuracy"][0].append(1.5), "1.5 is greater", id="share"
        ),
        pytest.param(
            lambda report: report["steps"][0]["gamma_ref"].update(mean=None), "None is not of type", id="null"
        ),
        pytest.param(lambda report: report.update(schema_version=2), "4 was expected", id="version"),
    ],
)
def test_schema_refuses_what_is_not_in_it(run_dir: RunDir, change: Callable[[dict[str, Any]], Any], why: str) -> None:
    finished(run_dir)
    report = build_report(run_dir)
    change(report)
    (found,) = wrong(report)
    assert why in found


# --- the schema itself ---


def fields(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that the schema knows, with its path."""
    if isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            yield f"{path}.{name}", field
        for key, inner in schema.items():
            yield from fields(inner, f"{path}.{key}" if key != "properties" else path)


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_field_is_described_and_numbers_have_their_unit() -> None:
    found = list(fields(SCHEMA))
    assert len(found) > 90
    undescribed = [path for path, field in found if not field.get("description", "").endswith(".")]
    without_unit = [
        path for path, field in found if is_number(field) and not any(unit in words(field) for unit in UNITS)
    ]
    assert (undescribed, without_unit) == ([], [])


def words(field: dict[str, Any]) -> str:
    return str(field["description"]).lower()


# Numbers that count nothing: they name a step, a column, or a seed.
NAMES = ("t.", "t, or 0", "t of the next", "t, from 1", "its column", "by which rows")


def is_number(field: dict[str, Any]) -> bool:
    """Whether a field is a number, or a list or matrix of them."""
    if words(field).startswith(NAMES):
        return False
    kinds = field.get("items", field).get("type", [])
    is_matrix = field.get("$ref") in ("#/$defs/matrix", "#/$defs/shares", "#/$defs/interval")
    return is_matrix or bool({"number", "integer"} & set([kinds] if isinstance(kinds, str) else kinds))


def test_every_object_is_closed() -> None:
    """But for versions, whose keys are the names of packages."""

    def open_ones(schema: Any, path: str = "") -> Iterator[str]:
        if isinstance(schema, dict):
            if "properties" in schema and "type" in schema and schema.get("additionalProperties") is not False:
                yield path
            for key, inner in schema.items():
                yield from open_ones(inner, f"{path}.{key}")

    assert list(open_ones(SCHEMA)) == []
