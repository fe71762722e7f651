"""The report and its contents, of a finished run and of a dead one."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import LeftOut, OrderedSource, Overlap, Plan, RatedSource
from sdpo_plugin.refresh import Refresh, RefreshRule
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.curves import segments
from sdpo_plugin.report.html import html
from sdpo_plugin.report.render import markdown, summary_table
from sdpo_plugin.report.view import refresh_rows
from sdpo_plugin.report.write import write_report
from sdpo_plugin.run_dir.journal import close_run
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import save_table
from tests.dead_runs import resume, save_ledger, with_step
from tests.fakes import EXTERNAL, FakeHost, HostDiedError, make_plan, run, table_of


def finish(run_dir: RunDir, plan: Plan | None = None, host: FakeHost | None = None) -> dict[str, Any]:
    run(host or FakeHost(), run_dir, plan)
    return build_report(run_dir)


def die(run_dir: RunDir, call: str) -> dict[str, Any]:
    host = FakeHost(dies_in=call)
    with pytest.raises(HostDiedError, match=re.escape(call)):
        finish(run_dir, host=host)
    return build_report(run_dir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, dict[str, Any]]:
    """A run of two steps and its report, for tests that only look."""
    run_dir = RunDir(tmp_path_factory.mktemp("finished"))
    return run_dir, finish(run_dir)


@pytest.fixture
def report(finished: tuple[RunDir, dict[str, Any]]) -> dict[str, Any]:
    return finished[1]


# --- a finished run ---


def test_keys_of_the_report_are_frozen(report: dict[str, Any]) -> None:
    assert list(report) == [
        "schema_version",
        "finished",
        "progress",
        "base_model",
        "models",
        "versions",
        "lives",
        "partition",
        "ordering",
        "overlaps",
        "rated",
        "left_out",
        "data_checks",
        "warnings",
        "verdicts",
        "steps",
        "train",
        "heldout",
        "changes",
        "lm_eval",
        "from_cache",
    ]


def test_keys_of_a_step_are_frozen(report: dict[str, Any]) -> None:
    assert [list(step) for step in report["steps"]] == [
        [
            "index",
            "name",
            "state",
            "model_dir",
            "sources",
            "num_rows",
            "num_dropped",
            "num_optimizer_steps",
            "reference",
            "reference_refresh",
            "refreshes",
            "policy_init",
            "source_rows",
            "gamma_ref",
            "first_loss",
            "final_loss",
            "beta",
            "learning_rate",
            "curve",
            "log_probs_seconds",
            "diagnostics_seconds",
            "train_seconds",
            "refresh_seconds",
            "export_seconds",
        ]
    ] * 2


def test_keys_of_gamma_ref_are_frozen(report: dict[str, Any]) -> None:
    assert list(report["steps"][0]["gamma_ref"]) == [
        "mean",
        "median",
        "q05",
        "q25",
        "q75",
        "q95",
        "per_token_mean",
    ]


def test_what_the_run_was(report: dict[str, Any]) -> None:
    assert {key: report[key] for key in ("schema_version", "finished", "base_model", "models")} == {
        "schema_version": 4,
        "finished": True,
        "base_model": "base/model",
        "models": ["M_0", "M_1", "M_2"],
    }


def test_what_a_step_was(report: dict[str, Any]) -> None:
    step = report["steps"][1]
    assert {
        key: value for key, value in step.items() if key not in ("gamma_ref", "curve") and not key.endswith("_seconds")
    } == {
        "index": 2,
        "name": "step-2",
        "state": "exported",
        "model_dir": "step-2",
        "sources": ["pairs-2.jsonl"],
        "num_rows": 4,
        "num_dropped": 0,
        "num_optimizer_steps": 3,  # made; 4 were planned
        "reference": "M_1",
        "reference_refresh": None,
        "refreshes": [],
        "policy_init": "M_1",
        "source_rows": [],
        "first_loss": math.log(2),
        "final_loss": 0.7 - 0.1 * 2,
        "beta": 0.1,
        "learning_rate": None,  # none in this host's settings
    }


@pytest.mark.parametrize(
    ("key", "of_ledger"),
    [
        ("log_probs_seconds", "log_probs_seconds"),
        ("diagnostics_seconds", "diagnostics_seconds"),
        ("train_seconds", "train_seconds"),
        ("export_seconds", "export_seconds"),
    ],
    ids=["log-probs", "diagnostics", "train", "export"],
)
def test_times_are_those_of_the_ledger(finished: tuple[RunDir, dict[str, Any]], key: str, of_ledger: str) -> None:
    run_dir, report = finished
    ledger = json.loads(run_dir.ledger.read_text())
    assert [step[key] for step in report["steps"]] == [record[of_ledger] for record in ledger["records"]]
    assert None not in [step[key] for step in report["steps"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # D_2 = 1, −1, 2, 6 under M_1, θ = 1: γ = 2, −2, 4, 12
        pytest.param("mean", 4.0, id="mean"),  # 16/4
        pytest.param("median", 3.0, id="median"),  # (2 + 4)/2
        pytest.param("q05", -1.4, id="q05"),  # 0.05 · 3 = 0.15 of the way from −2 to 2
        pytest.param("q95", 10.8, id="q95"),  # 0.95 · 3 = 2.85: 0.85 of the way from 4 to 12
        # (−10 + x)/2 − (−10 − x)/4 = −2.5 + 0.75x, x on average 2
        pytest.param("per_token_mean", -1.0, id="per-token-mean"),
    ],
)
def test_gamma_ref(report: dict[str, Any], name: str, value: float) -> None:
    assert report["steps"][1]["gamma_ref"][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "name", "matrix"),
    [
        # rows M_0, M_1, M_2 with θ = −1, 1, 3; γ = 2θx
        # D_1 = 1, 2, 3 under M_0: mean −4, none above 0;  D_2 = 1, −1, 2, 6 under M_1: mean 4, three of four
        pytest.param("train", "gamma", [[-4.0, None], [None, 4.0], [None, None]], id="gamma"),
        pytest.param(
            "train", "reference_free_accuracy", [[0.0, None], [None, 0.75], [None, None]], id="reference_free_accuracy"
        ),
        # val = 1, 2, −1, 2: mean 1, so 2θ; above 0 is −1 alone under M_0, the other three after
        # test = −4: −8θ
        pytest.param("heldout", "gamma", [[-2.0, 8.0], [2.0, -8.0], [6.0, -24.0]], id="heldout_gamma"),
        pytest.param(
            "heldout",
            "reference_free_accuracy",
            [[0.25, 1.0], [0.75, 0.0], [0.75, 0.0]],
            id="heldout_reference_free_accuracy",
        ),
        # 2θx above −2x wherever x is positive; against itself M_0 has none
        pytest.param(
            "heldout",
            "implicit_reward_accuracy",
            [[None, None], [0.75, 0.0], [0.75, 0.0]],
            id="heldout_implicit_reward_accuracy",
        ),
    ],
)
def test_matrices_of_a_finished_run(
    report: dict[str, Any], kind: str, name: str, matrix: list[list[float | None]]
) -> None:
    assert report[kind][name] == matrix


def test_matrices_without_held_out_sets_have_rows_and_no_columns(run_dir: RunDir) -> None:
    report = finish(run_dir, make_plan(heldout={}))
    assert report["heldout"]["sets"] == []
    keys = ("gamma", "reference_free_accuracy", "implicit_reward_accuracy")
    assert [report["heldout"][key] for key in keys] == [[[]] * 3] * 3


def test_step_whose_model_is_not_kept_has_no_directory(run_dir: RunDir) -> None:
    report = finish(run_dir, make_plan(export_steps="last"))
    assert [(step["state"], step["model_dir"]) for step in report["steps"]] == [
        ("exported", None),
        ("exported", "step-2"),
    ]
    close_run(run_dir, keep_last=False)
    assert [step["model_dir"] for step in build_report(run_dir)["steps"]] == [None, None]


# --- a dead run ---


def test_dead_in_training_keeps_the_log_probs(run_dir: RunDir) -> None:
    report = die(run_dir, "train M_0 on D_1")
    assert report["finished"] is False
    assert report["train"]["gamma"] == [[-4.0, None], [None, None], [None, None]]
    assert report["train"]["reference_free_accuracy"] == [[0.0, None], [None, None], [None, None]]
    assert report["heldout"]["gamma"] == [[-2.0, 8.0], [None, None], [None, None]]
    assert report["heldout"]["reference_free_accuracy"] == [[0.25, 1.0], [None, None], [None, None]]


def test_dead_in_training_has_no_outcome(run_dir: RunDir) -> None:
    step = die(run_dir, "train M_0 on D_1")["steps"][0]
    assert (step["state"], step["gamma_ref"]["mean"]) == ("training", -4.0)
    assert [step[key] for key in ("first_loss", "final_loss", "train_seconds", "export_seconds", "model_dir")] == (
        [None] * 5
    )
    assert step["log_probs_seconds"] > 0


def test_step_that_was_never_begun_has_nothing_but_its_plan(run_dir: RunDir) -> None:
    step = die(run_dir, "train M_0 on D_1")["steps"][1]
    keys = (
        "gamma_ref",
        "first_loss",
        "final_loss",
        "log_probs_seconds",
        "train_seconds",
        "export_seconds",
        "model_dir",
    )
    assert (step["state"], step["name"], step["num_rows"]) == ("planned", "step-2", 4)
    assert [step[key] for key in keys] == [None] * 7


@pytest.mark.parametrize(
    ("call", "gamma", "eval_rows"),
    [
        ("table of D_1 by M_0", [[None, None]] * 3, 0),
        ("export M_1 to staging", [[-4.0, None], [None, None], [None, None]], 1),
        ("table of D_2 by M_1", [[-4.0, None], [None, None], [None, None]], 1),
        ("train M_1 on D_2", [[-4.0, None], [None, 4.0], [None, None]], 2),
        ("held-out tables by M_2, called M_2", [[-4.0, None], [None, 4.0], [None, None]], 2),
    ],
)
def test_dead_run_reports_as_far_as_it_came(
    run_dir: RunDir, call: str, gamma: list[list[float | None]], eval_rows: int
) -> None:
    report = die(run_dir, call)
    assert report["train"]["gamma"] == gamma
    assert [None not in row for row in report["heldout"]["gamma"]] == [index < eval_rows for index in range(3)]


def test_trained_step_that_was_not_exported_has_its_losses(run_dir: RunDir) -> None:
    step = die(run_dir, "export M_1 to staging")["steps"][0]
    assert (step["state"], step["first_loss"], step["model_dir"]) == ("trained", math.log(2), None)


@pytest.mark.parametrize(
    ("call", "updates"),
    [("train M_0 on D_1", [None, None]), ("train M_1 on D_2", [2, None])],
    ids=["first", "second"],
)
def test_updates_are_those_made_and_not_those_planned(run_dir: RunDir, call: str, updates: list[int | None]) -> None:
    assert [step["num_optimizer_steps"] for step in die(run_dir, call)["steps"]] == updates


# --- partitions, references, warnings ---


def test_tables_that_ordered_the_data_fill_the_row_of_the_base_model(run_dir: RunDir) -> None:
    report = finish(run_dir, host=FakeHost(early=["M_0"]))
    # D_2 = 1, −1, 2, 6 under M_0, γ = −2x: mean −4, above 0 for −1 alone
    assert report["train"]["gamma"] == [[-4.0, -4.0], [None, 4.0], [None, None]]
    assert report["train"]["reference_free_accuracy"] == [[0.0, 0.25], [None, 0.75], [None, None]]
    assert [step["gamma_ref"]["mean"] for step in report["steps"]] == [-4.0, 4.0]


def test_tables_of_a_run_that_died_fill_the_row_too(run_dir: RunDir) -> None:
    with pytest.raises(HostDiedError):
        finish(run_dir, host=FakeHost(early=["M_0"], dies_in="train M_0 on D_1"))
    assert build_report(run_dir)["train"]["gamma"] == [[-4.0, -4.0], [None, None], [None, None]]


def test_fixed_base_reference_fills_the_row_of_the_base_model(run_dir: RunDir) -> None:
    report = finish(run_dir, make_plan(reference="base"), FakeHost(early=["M_0"]))
    assert report["train"]["gamma"] == [[-4.0, -4.0], [None, None], [None, None]]
    assert [step["reference"] for step in report["steps"]] == ["M_0", "M_0"]


def test_external_reference_has_no_row_and_its_gamma_stands_with_the_steps(run_dir: RunDir) -> None:
    report = finish(run_dir, make_plan(reference=EXTERNAL), FakeHost(early=[EXTERNAL]))
    assert report["models"] == ["M_0", "M_1", "M_2"]
    assert report["train"]["gamma"] == [[None, None]] * 3
    assert [(step["reference"], step["gamma_ref"]["mean"]) for step in report["steps"]] == [(EXTERNAL, 2.0)] * 2


def test_tables_of_the_base_model_stand_beside_an_external_reference(run_dir: RunDir) -> None:
    report = finish(run_dir, make_plan(reference=EXTERNAL), FakeHost(early=["M_0", EXTERNAL]))
    assert report["train"]["gamma"] == [[-4.0, -4.0], [None, None], [None, None]]
    assert [step["gamma_ref"]["mean"] for step in report["steps"]] == [2.0, 2.0]


def test_tables_of_other_rows_are_not_reported(run_dir: RunDir) -> None:
    """An earlier run died in this directory before it had finished a step; this one cuts the pool otherwise."""
    other = [[5.0, 5.0], [6.0]]
    with pytest.raises(HostDiedError):
        finish(run_dir, make_plan(other), FakeHost(other, early=["M_0"], dies_in="train M_0 on D_1"))
    assert run_dir.log_probs("M_0", make_plan().steps[1]).exists()
    assert finish(run_dir)["train"]["gamma"] == [[-4.0, None], [None, 4.0], [None, None]]


def test_damaged_table_leaves_its_cell_empty_and_is_named_by_its_path(run_dir: RunDir) -> None:
    report = finish(run_dir, host=FakeHost(early=["M_0"]))
    path = run_dir.log_probs("M_0", make_plan().steps[1])
    path.write_bytes(path.read_bytes()[:-1])
    damaged = build_report(run_dir)
    assert damaged["train"]["gamma"] == [[-4.0, None], [None, 4.0], [None, None]]
    assert damaged["train"]["reference_free_accuracy"] == [[0.0, None], [None, 0.75], [None, None]]
    (warning,) = damaged["warnings"]
    assert warning.startswith(
        missed("sdpo/log-probs/M_0-step-2.safetensors") + f"cannot read the reference table {path}: "
    )
    changed = ("train", "changes", "warnings")
    assert {key: value for key, value in damaged.items() if key not in changed} == {
        key: value for key, value in report.items() if key not in changed
    }


def missed(key: str) -> str:
    """How the warning about a table begins."""
    return f"{key} cannot be used, so its numbers are missing here: "


def test_plan_s_own_words_stand_in_the_report(run_dir: RunDir) -> None:
    plan = dataclasses.replace(
        make_plan(),
        partition={"strategy": "easy_to_hard", "unit": "source", "column": "gap"},
        ordering=(OrderedSource("a", 10, 0.8, 0.49, 0.94),),
        overlaps=(Overlap("step-1", "held-out val", 3),),
        left_out=(LeftOut("a", 1200, 3000, "max_rows"),),
        rated=(RatedSource("a", 1800, -0.25),),
    )
    report = finish(run_dir, plan)
    assert report["partition"] == {"strategy": "easy_to_hard", "unit": "source", "column": "gap"}
    assert report["rated"] == [{"source": "a", "num_rows": 1800, "mean": -0.25}]
    assert "\neasy to hard   rows  mean gap\n" in markdown(report)
    assert report["ordering"] == [{"source": "a", "num_rows": 10, "accuracy": 0.8, "low": 0.49, "high": 0.94}]
    assert report["overlaps"] == [{"step": "step-1", "other": "held-out val", "num_rows": 3}]
    assert report["left_out"] == [{"source": "a", "num_rows": 1200, "of_rows": 3000, "key": "max_rows"}]
    assert "## Left out\n\n```\nsource  rows left out     of  by\n" in markdown(report)


def test_report_of_an_ordinary_run_warns_of_nothing(report: dict[str, Any]) -> None:
    assert report["warnings"] == []


def warnings_of(run_dir: RunDir, **changes: Any) -> list[str]:
    found: list[str] = finish(run_dir, dataclasses.replace(make_plan(), **changes))["warnings"]
    return found


@pytest.mark.parametrize(
    ("low", "high", "warns"),
    [
        pytest.param(0.31, 0.69, True, id="intervals-overlap"),
        pytest.param(0.31, 0.6, True, id="intervals-touch"),
        pytest.param(0.31, 0.599, False, id="intervals-apart"),
    ],
)
def test_order_within_noise_is_reported(run_dir: RunDir, low: float, high: float, warns: bool) -> None:
    ordering = (OrderedSource("easy", 100, 0.7, 0.6, 0.78), OrderedSource("hard", 25, 0.5, low, high))
    expected = (
        f"the order of easy (0.700, 95 % 0.600 to 0.780) before hard (0.500, {low:.3f} to {high:.3f}) lies within noise"
    )
    assert warnings_of(run_dir, ordering=ordering) == ([expected] if warns else [])


def test_order_is_judged_between_neighbours(run_dir: RunDir) -> None:
    ranks = [("a", 0.9, 0.8, 0.95), ("b", 0.7, 0.65, 0.75), ("c", 0.68, 0.6, 0.7)]
    ordering = tuple(OrderedSource(name, 100, *numbers) for name, *numbers in ranks)
    told = warnings_of(run_dir, ordering=ordering)
    assert [warning.split(" (")[0] for warning in told] == ["the order of b"]


def test_overlaps_are_reported(run_dir: RunDir) -> None:
    overlaps = (Overlap("step-1", "held-out val", 3), Overlap("step-2", "step step-1", 1200))
    assert warnings_of(run_dir, overlaps=overlaps) == [
        "3 rows of step step-1 have a prompt that stands in held-out val too",
        "1,200 rows of step step-2 have a prompt that stands in step step-1 too",
    ]


# --- files ---


def test_written_report_is_the_report(run_dir: RunDir) -> None:
    report = finish(run_dir)
    write_report(run_dir, report)
    assert json.loads(run_dir.report.read_text()) == report


def test_markdown_stands_beside_the_report(run_dir: RunDir) -> None:
    report = die(run_dir, "train M_1 on D_2")
    write_report(run_dir, report)
    assert (run_dir.root / "sdpo" / "report.md").read_text() == markdown(report)


def test_report_can_be_written_before_and_after_every_training(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []

    def write() -> None:
        write_report(run_dir, build_report(run_dir))
        report = json.loads(run_dir.report.read_text())
        seen.append((report["finished"], [step["state"] for step in report["steps"]]))

    host.on_report = write
    run(host, run_dir)
    assert seen == [
        (False, ["referenced", "planned"]),
        (False, ["exported", "planned"]),
        (False, ["exported", "referenced"]),
        (False, ["exported", "exported"]),
        (True, ["exported", "exported"]),
    ]


def overwrite(path: Path) -> None:
    """With a whole table of another run."""
    save_table(table_of((1.0, -1.0, 2.0, 6.0), 0.25, "M_1"), path)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(Path.unlink, "cannot read the reference table {path}: ", id="missing"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot read the reference table {path}: ", id="torn"
        ),
        pytest.param(overwrite, "{path} is a table of another run than the ledger vouches for", id="another"),
    ],
)
def test_reference_table_that_cannot_be_used_is_reported_and_leaves_its_numbers_out(
    run_dir: RunDir, damage: Callable[[Path], None], why: str
) -> None:
    """Of a run that is over, and of one that is under way: no step is trained by a report."""
    finish(run_dir)
    path = run_dir.reference(make_plan().steps[1])
    damage(path)
    report = build_report(run_dir)
    assert [step["gamma_ref"] is None for step in report["steps"]] == [False, True]
    assert report["train"]["gamma"] == [[-4.0, None], [None, None], [None, None]]
    (warning,) = report["warnings"]
    assert warning.startswith(missed("sdpo/reference/step-2.safetensors") + why.format(path=path))
    assert f"- {warning}." in markdown(report)
    assert "–" in summary_table(report).splitlines()[-1]


def test_held_out_tables_of_other_rows_are_not_held_against_each_other(run_dir: RunDir) -> None:
    """The ledger vouches for both; a pull from a copy of the directory, or an edit, can make such a pair."""
    finish(run_dir)
    path, ledger = run_dir.heldout("M_1", 0), Ledger.load(run_dir.ledger)
    other = table_of((9.0, 9.0), 1.0, "M_1")
    save_table(other, path)
    tables = {**ledger.tables, run_dir.key(path): other.digest()}
    save_ledger(run_dir, dataclasses.replace(ledger, tables=tables))
    report = build_report(run_dir)
    assert report["heldout"]["implicit_reward_accuracy"] == [[None, None], [None, 0.0], [0.75, 0.0]]
    assert report["warnings"] == [missed("sdpo/heldout/M_1-1.safetensors") + f"{path} is of other rows"]


@pytest.mark.parametrize(
    ("model", "column", "gamma", "accuracy"),
    [
        # γ by model (rows) and set (columns); M_0's own tables are what the others are held against
        pytest.param("M_1", 0, [[-2, 8], [None, -8], [6, -24]], [[None, None], [None, 0], [0.75, 0]], id="M_1"),
        pytest.param("M_0", 1, [[-2, None], [2, -8], [6, -24]], [[None, None], [0.75, None], [0.75, None]], id="M_0"),
    ],
)
def test_held_out_table_that_was_deleted_leaves_its_cell_empty(
    run_dir: RunDir, model: str, column: int, gamma: list[list[float | None]], accuracy: list[list[float | None]]
) -> None:
    finish(run_dir)
    run_dir.heldout(model, column).unlink()
    report = build_report(run_dir)
    assert (report["heldout"]["gamma"], report["heldout"]["implicit_reward_accuracy"]) == (gamma, accuracy)
    (warning,) = report["warnings"]
    assert warning.startswith(missed(f"sdpo/heldout/{model}-{column + 1}.safetensors"))
    assert [[cell is None for cell in row] for row in report["heldout"]["reference_free_accuracy"]] == [
        [cell is None for cell in row] for row in gamma
    ]


def test_torn_ledger_is_named_by_its_path(run_dir: RunDir) -> None:
    finish(run_dir)
    run_dir.ledger.write_text("{")
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.ledger} is not a ledger of schema version 2")):
        build_report(run_dir)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"null", b"{}", b'{"schema_version": 2}', b"\xff"], ids=repr
)
def test_plan_json_is_not_needed(run_dir: RunDir, content: bytes | None) -> None:
    """It is a copy for people; the ledger holds the plan that counts."""
    report = finish(run_dir)
    run_dir.plan.unlink() if content is None else run_dir.plan.write_bytes(content)
    assert build_report(run_dir) == report


def test_plan_of_the_report_is_that_of_the_ledger(run_dir: RunDir) -> None:
    """Also of a run that died between writing its plan and its ledger, when it was resumed under another plan."""
    finish(run_dir)
    ledger = Ledger.load(run_dir.ledger)
    save_ledger(run_dir, with_step(ledger, 1, sources=("other.jsonl",)))
    assert [step["sources"] for step in build_report(run_dir)["steps"]] == [["other.jsonl"], ["pairs-2.jsonl"]]
    resume(run_dir, FakeHost())
    assert [step["sources"] for step in build_report(run_dir)["steps"]] == [["pairs-1.jsonl"], ["pairs-2.jsonl"]]


# --- for reading ---


def test_summary_of_a_finished_run(report: dict[str, Any]) -> None:
    assert summary_table(report).splitlines() == [
        "step        rows  dropped  updates  mean γ_ref  first loss  last loss  acc val  acc test",
        "----------  ----  -------  -------  ----------  ----------  ---------  -------  --------",
        "M_0                                                                      0.250     1.000",
        "M_1 step-1     3        0        2       -4.00      0.6931     0.6000    0.750     0.000",
        "M_2 step-2     4        0        3       +4.00      0.6931     0.5000    0.750     0.000",
    ]


def test_summary_of_a_dead_run_marks_what_is_not_known(run_dir: RunDir) -> None:
    first, second = summary_table(die(run_dir, "train M_0 on D_1")).splitlines()[-2:]
    assert re.fullmatch(r"M_1 step-1 +3 +0 +\S+ +-4\.00 +– +– +– +–", first)
    assert re.fullmatch(r"M_2 step-2 +4 +0 +\S+ +– +– +– +– +–", second)


@pytest.mark.parametrize(
    ("call", "state"),
    [("", "Steps: 2, finished."), ("train M_1 on D_2", "Steps: 2, not finished.")],
    ids=["done", "dead"],
)
def test_markdown_says_whether_the_run_finished(run_dir: RunDir, call: str, state: str) -> None:
    report = die(run_dir, call) if call else finish(run_dir)
    assert f"Base model: `base/model`. {state}\n" in markdown(report)


def tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of a report by the first words of their headings, and their lines as words."""
    found = {}
    for block in text.split("```")[1::2]:
        heading, _, *lines = block.strip().splitlines()
        found[heading.split("  ")[0]] = [line.split() for line in lines]
    return found


@pytest.mark.parametrize(
    ("heading", "lines"),
    [
        ("reference-free accuracy", [["M_0", "0.250", "1.000"], ["M_1", "0.750", "0.000"], ["M_2", "0.750", "0.000"]]),
        ("implicit reward accuracy", [["M_0", "–", "–"], ["M_1", "0.750", "0.000"], ["M_2", "0.750", "0.000"]]),
        ("mean γ", [["M_0", "-2.00", "+8.00"], ["M_1", "+2.00", "-8.00"], ["M_2", "+6.00", "-24.00"]]),
        # γ = 2θx of x = 1, 2, −1, 2 in order: −4, −4, −2, 2; −2, 2, 4, 4; −6, 6, 12, 12: a quarter of 3 is 0.75
        ("lower quartile of γ", [["M_0", "-4.00", "+8.00"], ["M_1", "+1.00", "-8.00"], ["M_2", "+3.00", "-24.00"]]),
        # θ + 1 = 2, 4 times x, of which the mean is 1, and −4 in test; over two tokens; ½ · mean((θ + 1)² x²),
        # x² being 2.5 on average, and 16 in test
        (
            "against M_0, in nats",
            [
                ["M_1", "val", "+4.00", "+2.00", "-2.00", "-4.500", "5.00"],
                ["M_2", "val", "+8.00", "+4.00", "-4.00", "-3.500", "20.00"],
                ["M_1", "test", "-16.00", "-8.00", "+8.00", "-7.000", "32.00"],
                ["M_2", "test", "-32.00", "-16.00", "+16.00", "-11.000", "128.00"],
            ],
        ),
    ],
    ids=["accuracy", "implicit", "gamma", "quartile", "drift"],
)
def test_markdown_shows_the_models_on_what_is_held_out(
    report: dict[str, Any], heading: str, lines: list[list[str]]
) -> None:
    text = markdown(report)
    held_out = text[text.index("## Models on held-out sets") : text.index("## Models on training rows")]
    assert tables(held_out)[heading] == lines


def test_markdown_shows_sources_easy_to_hard_and_doubts(run_dir: RunDir) -> None:
    ordering = (OrderedSource("orca", 12859, 0.7, 0.6, 0.78), OrderedSource("ultrafeedback", 25, 0.5, 0.31, 0.69))
    plan = dataclasses.replace(make_plan(), ordering=ordering, overlaps=(Overlap("step-1", "held-out val", 3),))
    text = markdown(finish(run_dir, plan))
    assert text.split("```")[3].strip().splitlines() == [
        "easy to hard     rows  reference-free accuracy of M_0  95 %",
        "-------------  ------  ------------------------------  --------------",
        "orca           12,859                           0.700  0.600 to 0.780",
        "ultrafeedback      25                           0.500  0.310 to 0.690",
    ]
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- The order of orca (0.700, 95 % 0.600 to 0.780) before ultrafeedback (0.500, 0.310 to 0.690) "
        "lies within noise.",
        "- 3 rows of step step-1 have a prompt that stands in held-out val too.",
    ]


def test_markdown_of_an_ordinary_run_has_nothing_to_remark(report: dict[str, Any]) -> None:
    assert "\n## Remarks\n\nNothing to remark.\n" in markdown(report)


def test_markdown_without_held_out_sets_shows_steps_training_rows_and_times(run_dir: RunDir) -> None:
    text = markdown(finish(run_dir, make_plan(heldout={})))
    assert list(tables(text)) == ["step", "reference-free accuracy", "mean γ", "lower quartile of γ", "seconds"]


# --- a reference that moves ---


def moved(run_dir: RunDir) -> dict[str, Any]:
    """Two steps: the first refreshed twice by distance, the second never, though it should be every 9 updates."""
    host, plan = FakeHost(), make_plan()
    rules = (RefreshRule(kl_above=0.5), RefreshRule(every=9))
    steps = tuple(dataclasses.replace(step, refresh=rule) for step, rule in zip(plan.steps, rules, strict=True))
    host.refreshes = {1: (Refresh(1, 0.75, 3), Refresh(2, 1.0, 2)), 2: ()}
    return finish(run_dir, dataclasses.replace(plan, steps=steps), host)


def test_refreshes_are_told(tmp_path: Path) -> None:
    report = moved(RunDir(tmp_path))
    first, second = report["steps"]
    assert first["reference_refresh"] == {"every": None, "kl_above": 0.5}
    assert first["refreshes"] == [{"update": 1, "kl": 0.75, "num_rows": 3}, {"update": 2, "kl": 1.0, "num_rows": 2}]
    assert (first["refresh_seconds"], second["refresh_seconds"], second["refreshes"]) == (1.0, 0.0, [])
    told = markdown(report).partition("## References that moved within a step")[2].partition("##")[0]
    lines = [re.split(r" {2,}", line.strip()) for line in told.splitlines() if line.startswith("step-")]
    assert lines == [
        ["step-1", "above 0.5 nats", "2", "1, 2", "0.75 to 1", "5", "1.0"],
        ["step-2", "every 9 updates", "0", "–", "–", "0", "0.0"],
    ]
    # D_2 has 4 rows, and batches of one: 4 updates
    assert (
        "step step-2 has 4 updates and reference_refresh every 9, so that its reference never moves"
        in report["warnings"]
    )


def test_refreshes_are_marked_in_the_curves(tmp_path: Path) -> None:
    """Step 1 makes 2 of its 3 updates here."""
    report = moved(RunDir(tmp_path))
    assert [segment.marks for segment in segments(report, "loss")] == [(1, 2), ()]
    page = html(report)
    assert "<title>reference refreshed after update 2 of step-1</title>" in page
    assert "References that moved within a step" in page


def test_a_report_without_such_steps_says_nothing_of_them(report: dict[str, Any]) -> None:
    assert "References that moved" not in markdown(report) + html(report)


def test_many_refreshes_are_not_all_listed() -> None:
    made = [{"update": update, "kl": None, "num_rows": 4} for update in range(10, 130, 10)]
    step = {"name": "a", "reference_refresh": {"every": 10, "kl_above": None}, "refreshes": made, "refresh_seconds": 1}
    (_, row) = refresh_rows({"steps": [step]})
    assert row == ("a", "every 10 updates", "12", "10, 20, 30, 40, 50, 60, 70, …, 120", "–", "48", "1.0")
