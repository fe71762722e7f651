"""What was found in the pairs is kept with the run: written whole, read strictly, and the report does without it."""

import dataclasses
import json
from typing import Any

import pytest

from sdpo_plugin.pair_checks import KINDS, Found, LongerIsChosen, SourceChecks
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.data_checks import DataChecks, add_checks, load_checks, save_checks
from sdpo_plugin.run_dir.paths import RunDir
from tests.fakes import FakeHost, run

CLEAN = dict.fromkeys(KINDS, Found(0))
FIRST = SourceChecks("step-1", 40, None, CLEAN | {"identical": Found(2, (4, 17))}, LongerIsChosen(38, 0.5, 0.3, 0.7))
CHECKS = DataChecks("error", (FIRST, SourceChecks("step-2", 25, 3, CLEAN)))


def test_what_is_written_is_read(run_dir: RunDir) -> None:
    save_checks(run_dir, CHECKS)
    assert load_checks(run_dir.data_checks) == CHECKS


def test_rows_that_are_made_later_stand_beside_the_others_or_in_their_own_place(run_dir: RunDir) -> None:
    save_checks(run_dir, CHECKS)
    made = SourceChecks("step-3", 5, 0, CLEAN)
    add_checks(run_dir, made)
    again = dataclasses.replace(made, num_rows=6)
    add_checks(run_dir, again)
    assert load_checks(run_dir.data_checks).sources == (*CHECKS.sources, again)


@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_rows_that_are_made_later_make_no_file_of_their_own(run_dir: RunDir, content: bytes | None) -> None:
    """It would say nothing of the other sources."""
    if content is not None:
        run_dir.folder.mkdir(parents=True)
        run_dir.data_checks.write_bytes(content)
    add_checks(run_dir, FIRST)
    assert (run_dir.data_checks.read_bytes() if run_dir.data_checks.exists() else None) == content


def test_a_run_that_begins_anew_does_not_keep_those_of_another(run_dir: RunDir) -> None:
    save_checks(run_dir, CHECKS)
    clear(run_dir)
    assert not run_dir.data_checks.exists()


def spoil(value: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**value, **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"schema_version": 2}, "not checks of schema version 1", id="version"),
        pytest.param({"other": 1}, "other is 1", id="unknown-key"),
        pytest.param({"check_data": None}, "check_data is None", id="type"),
        pytest.param({"sources": [{"source": "step-1"}]}, "sources.0.num_rows is missing", id="missing"),
        pytest.param(
            {"sources": [{"source": "a", "num_rows": 1, "num_dropped": None, "found": {"lost": {}}}]},
            "checks of a are of lost",
            id="kinds",
        ),
    ],
)
def test_damaged_file_costs_its_table_and_a_warning(run_dir: RunDir, changes: dict[str, Any], why: str) -> None:
    run(FakeHost(), run_dir)
    save_checks(run_dir, CHECKS)
    value = json.loads(run_dir.data_checks.read_text(encoding="utf-8"))
    run_dir.data_checks.write_text(spoil(value, **changes), encoding="utf-8")
    report = build_report(run_dir)
    assert report["data_checks"] is None
    (warning,) = [text for text in report["warnings"] if "found in the data" in text]
    assert why in warning
    assert str(run_dir.data_checks) in warning
    assert "Checks of the data" not in markdown(report)


def test_report_has_the_counts_and_what_was_found(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    assert build_report(run_dir)["data_checks"] is None
    save_checks(run_dir, CHECKS)
    report = build_report(run_dir)
    assert json.loads(json.dumps(report["data_checks"])) == json.loads(json.dumps(dataclasses.asdict(CHECKS)))
    assert "step step-1: 2 of 40 pairs (5.0%) have the same tokens" in report["warnings"][0]
    lines = markdown(report).splitlines()
    assert "chosen the same as rejected           2       0" in lines
    assert "dropped (too long, or repeated)       –       3" in lines
