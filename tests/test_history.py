"""What was logged in each step: kept when it is trained, read back whole or not at all, and its curve in the report."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.curves import curve, fitting, rises, segments
from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.fresh import require_own_places
from sdpo_plugin.run_dir.history import ReadableHistories, save_history
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import checkpoint, die, resume
from tests.fakes import FakeHost, make_plan, run, with_digest

STEP = make_plan().steps[0]


def entries_of(run_dir: RunDir, made: int) -> Any:
    from sdpo_plugin.run_dir.ledger import StepRecord

    return ReadableHistories(run_dir).read(STEP, StepRecord("trained", num_optimizer_steps=made))


# --- the file ---


def test_only_finite_numbers_are_kept(run_dir: RunDir) -> None:
    odd = {"nan": math.nan, "inf": math.inf, "text": "0.5", "none": None, "list": [1.0], "flag": True}
    save_history(run_dir, STEP, [{"step": 1, "loss": 0.5, **odd}, {"step": 2, "loss": 0.25}])
    assert entries_of(run_dir, 2) == ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25})


def test_history_that_cannot_be_written_is_named(run_dir: RunDir) -> None:
    run_dir.folder.mkdir(parents=True)
    run_dir.histories.touch()
    with pytest.raises(OutputError, match=rf"^{run_dir.history(STEP)} could not be written: "):
        save_history(run_dir, STEP, [])


def test_histories_go_when_a_run_came_to_nothing(run_dir: RunDir) -> None:
    save_history(run_dir, STEP, [])
    clear(run_dir)
    assert not run_dir.histories.exists()


def test_nothing_is_written_where_a_link_stands(run_dir: RunDir, tmp_path: Path) -> None:
    run_dir.folder.mkdir(parents=True)
    run_dir.histories.symlink_to(tmp_path)
    with pytest.raises(OutputError, match=f"^{run_dir.histories} is a symbolic link to {tmp_path}, "):
        require_own_places(run_dir, [])


# --- in the report ---


def test_curves_of_a_finished_run(run_dir: RunDir) -> None:
    """ln 2 and 0, then 0.05·t less and 0.25·t more with every update; one update fewer than rows."""
    run(FakeHost(), run_dir)
    first, second = (step["curve"] for step in build_report(run_dir)["steps"])
    assert first == {
        "update": [1, 2],
        "loss": [math.log(2), pytest.approx(math.log(2) - 0.05)],
        "reward_margin": [0.0, 0.25],
        "reward_accuracy": [0.0, 0.5],
    }
    assert (second["update"], second["reward_margin"]) == ([1, 2, 3], [0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("call", "has_curve"),
    [
        pytest.param("train M_0 on D_1", [False, False], id="in-the-first"),
        pytest.param("export M_1 to staging", [True, False], id="before-its-export"),
        pytest.param("train M_1 on D_2", [True, False], id="in-the-second"),
    ],
)
def test_dead_run_has_the_curves_of_the_steps_that_it_trained(
    run_dir: RunDir, call: str, has_curve: list[bool]
) -> None:
    die(run_dir, call)
    report = build_report(run_dir)
    assert [step["curve"] is not None for step in report["steps"]] == has_curve
    assert report["warnings"] == []


def test_resumed_run_has_all_curves(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    checkpoint(run_dir, 2, 2)
    resume(run_dir, FakeHost())
    assert [len(step["curve"]["update"]) for step in build_report(run_dir)["steps"]] == [2, 3]


def forge(path: Path) -> None:
    """A whole history, of another run: the step has made two updates."""
    path.write_text(with_digest({"schema_version": 1, "entries": [{"step": 9, "loss": 0.5}]}))


def flip(path: Path) -> None:
    path.write_text(path.read_text().replace("0.25", "0.75"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(Path.unlink, "[Errno 2] No such file or directory: '{path}'", id="missing"),
        pytest.param(lambda path: path.write_text("{"), "EOF while parsing an object at line 1 column 1", id="torn"),
        pytest.param(flip, "its content does not fit its digest", id="another-number"),
        pytest.param(forge, "it has update 9, and the step has made 2", id="of-another-run"),
        pytest.param(
            lambda path: path.write_text(with_digest({"schema_version": 1, "entries": [{"loss": "0.5"}]})),
            "entries.0.loss is '0.5': Input should be a valid number",
            id="no-number",
        ),
    ],
)
def test_history_that_cannot_be_used_costs_its_curve_and_nothing_else(
    run_dir: RunDir, damage: Callable[[Path], None], why: str
) -> None:
    run(FakeHost(), run_dir)
    whole, path = build_report(run_dir), run_dir.history(STEP)
    damage(path)
    report = build_report(run_dir)
    reason = why.format(path=path)
    assert report["warnings"] == [f"sdpo/history/step-1.json cannot be used, so its curve is missing here: {reason}"]
    assert [step["curve"] is None for step in report["steps"]] == [True, False]
    for step, before in zip(report["steps"], whole["steps"], strict=True):
        assert step | {"curve": 0} == before | {"curve": 0}
    assert {**report, "steps": 0, "warnings": 0} == {**whole, "steps": 0, "warnings": 0}


# --- curves ---


def test_what_was_not_logged_is_empty() -> None:
    logged = [
        {"step": 2, "loss": 0.5},
        {"step": 2, "eval_loss": 0.4},
        {"step": 4, "loss": 0.25, "rewards/margins": 1.0},
    ]
    assert curve(logged) == {
        "update": [2, 4],
        "loss": [0.5, 0.25],
        "reward_margin": [None, 1.0],
        "reward_accuracy": [None, None],
    }
    assert curve([]) == {"update": [], "loss": [], "reward_margin": [], "reward_accuracy": []}


@pytest.mark.parametrize(("logged", "points"), [(300, 300), (301, 151), (600, 300), (1000, 250)])
def test_long_curves_are_averaged_over_neighbours(logged: int, points: int) -> None:
    """Two at a time from 301 on, four from 901 on; the mean of 1 … n of equal groups stays the mean."""
    found = curve([{"step": update, "loss": float(update)} for update in range(1, logged + 1)])
    assert len(found["update"]) == points
    assert found["update"][-1] == logged
    assert found["loss"][0] == {300: 1.0, 301: 1.5, 600: 1.5, 1000: 2.5}[logged]


def test_curves_of_a_run_follow_each_other(run_dir: RunDir) -> None:
    """Two updates in the first step; in the second the third of three was not logged with a loss."""
    run(FakeHost(), run_dir)
    report = build_report(run_dir)
    report["steps"][1]["curve"]["loss"][2] = None
    first, second = segments(report, "loss")
    assert (first.index, first.step, first.start, first.end, first.x) == (1, "step-1", 0, 2, [1, 2])
    assert (second.index, second.step, second.start, second.end, second.x) == (2, "step-2", 2, 5, [3, 4])
    report["steps"][0]["curve"] = None
    (only,) = segments(report, "loss")
    assert (only.start, only.x) == (2, [3, 4])


def test_running_mean_is_that_of_a_tenth_of_the_points(run_dir: RunDir) -> None:
    """Of forty points two on either side, fewer at the ends: (0 + 1 + 2)/3, …, (37 + 38 + 39)/3; a step is even."""
    run(FakeHost(), run_dir)
    report = build_report(run_dir)
    report["steps"][0]["curve"] = curve([{"step": at + 1, "loss": float(at)} for at in range(40)])
    smooth = segments(report, "loss")[0].smooth()
    assert smooth == [1.0, 1.5, *map(float, range(2, 38)), 37.5, 38.0]


def test_gamma_of_the_reference_stands_beside_that_of_the_base_on_the_same_rows(run_dir: RunDir) -> None:
    """D_1 = 1, 2, 3 under M_0: γ = −2x. Of D_2 three rows of four under M_0 and M_1, opposite to each other."""
    host = FakeHost()
    run(host, run_dir, make_plan(diagnostics=host.diagnostics))
    report = build_report(run_dir)
    first, second = rises(report)
    assert (first.step, first.rows, first.reference.mean, first.base) == ("step-1", "", -4.0, None)
    assert (second.rows, second.reference.model) == ("3 of 4 rows", "M_1")
    assert second.base is not None
    assert second.base.mean == -second.reference.mean == report["train"]["gamma"][0][1]
    assert (second.reference.low, second.reference.high) == (-second.base.high, -second.base.low)


def test_gamma_of_the_reference_stands_alone_where_nothing_else_is_known(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    second = rises(build_report(run_dir))[1]
    assert (second.rows, second.reference.mean, second.base) == ("", 4.0, None)


@pytest.mark.parametrize(
    ("letters", "shown"),
    [(20, "ultrafeedback-2-of-8"), (19.9, "ultrafeed…ck-2-of-8"), (9, "ultr…of-8"), (7, "2"), (0.5, "")],
)
def test_names_are_cut_in_the_middle(letters: float, shown: str) -> None:
    assert fitting("ultrafeedback-2-of-8", letters, "2") == shown


def test_history_is_json_that_others_can_read(run_dir: RunDir) -> None:
    save_history(run_dir, STEP, [{"step": 1, "loss": 0.5}])
    content = json.loads(run_dir.history(STEP).read_text())
    assert (content["schema_version"], content["entries"]) == (1, [{"step": 1, "loss": 0.5}])
