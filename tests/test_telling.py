"""What a run says while it goes: how far it is, what a step did, where everything is at the end."""

import dataclasses
import re
from typing import Any

import pytest

from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.forecast import forecast
from sdpo_plugin.report.lines import news, run_ended, step_begins
from sdpo_plugin.report.render import markdown
from sdpo_plugin.report.view import left
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.progress import Progress, read_progress, write_progress
from sdpo_plugin.text import duration
from tests.dead_runs import die
from tests.fakes import DIAGNOSTICS, IDENTITY, FakeHost, make_plan, run

SECONDS = {"log_probs_seconds": 30.0, "diagnostics_seconds": 4.0, "train_seconds": 120.0, "export_seconds": 6.0}


def begun(*states: str) -> Ledger:
    """Steps of 3, 4 and 3 rows and as many updates; each that is exported took SECONDS and made its updates."""
    plan = make_plan([[1.0] * 3, [1.0] * 4, [1.0] * 3])
    ledger = Ledger.begin(plan, IDENTITY)
    for index, state in enumerate(states, 1):
        facts: dict[str, Any] = {"state": state}
        if state == "exported":
            facts |= SECONDS | {"num_optimizer_steps": plan.steps[index - 1].num_optimizer_steps}
        ledger = ledger.record(index, **facts)
    return ledger


# --- how far ---


def test_before_anything_is_timed_nothing_is_foretold() -> None:
    now = forecast(begun("planned"), None)
    assert now is not None
    assert (now.step, now.name, now.update, now.num_updates, now.updates_left) == (1, "step-1", 0, 3, 10)
    assert (now.steps_done, now.step_seconds, now.seconds, now.at) == (0, None, None, None)


def test_between_steps_updates_take_as_long_as_those_before() -> None:
    now = forecast(begun("exported", "referenced"), None)
    assert now is not None
    assert (now.steps_done, now.step, now.updates_left) == (1, 2, 7)
    assert now.step_seconds == 4 * 40.0  # 120 s for 3 updates
    # 7 updates; 3 rows of step 3 at 30 s for 3 rows; diagnostics and export of two steps
    assert now.seconds == 7 * 40.0 + 3 * 10.0 + 2 * 10.0


def test_step_under_way_says_how_long_its_updates_take() -> None:
    now = forecast(begun("exported", "training"), Progress(2, 1, 4, 2.0, 1e9))
    assert now is not None
    assert (now.update, now.num_updates, now.updates_left, now.step_seconds, now.at) == (1, 4, 6, 3 * 2.0, 1e9)
    assert now.seconds == 6 * 2.0 + 3 * 10.0 + 2 * 10.0


def test_progress_of_a_step_that_is_done_is_not_that_of_the_next() -> None:
    now = forecast(begun("exported", "referenced"), Progress(1, 2, 3, 2.0, 1e9))
    assert now is not None
    assert (now.update, now.at, now.step_seconds) == (0, None, 160.0)


def test_rows_that_are_not_made_yet_take_nobody_knows_how_long() -> None:
    ledger = begun("exported", "training")
    *known, last = ledger.plan.steps
    awaited = dataclasses.replace(last, num_rows=0, num_optimizer_steps=0, is_awaited=True)
    plan = dataclasses.replace(ledger.plan, steps=(*known, awaited))
    now = forecast(dataclasses.replace(ledger, plan=plan), Progress(2, 1, 4, 2.0, 1e9))
    assert now is not None
    assert (now.updates_left, now.step_seconds, now.seconds) == (3, 3 * 2.0, None)
    shown = left({"progress": dataclasses.asdict(now), "steps": [{}, {}, {}]})
    assert shown.endswith("3 updates left in the chain and those of steps whose rows are not made yet")


def test_all_trained_and_not_finished() -> None:
    now = forecast(begun("exported", "exported", "exported"), None)
    assert now is not None
    assert (now.steps_done, now.step, now.updates_left, now.seconds) == (3, 0, 0, None)


def test_finished_run_has_nothing_to_foretell() -> None:
    ledger = begun("exported", "exported", "exported")
    assert forecast(dataclasses.replace(ledger, finished=True), None) is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"step": -1, "update": 1, "num_updates": 1, "seconds_per_update": 1.0, "at": 1.0}',
    ],
    ids=repr,
)
def test_progress_that_cannot_be_read_is_none(run_dir: RunDir, content: bytes | None) -> None:
    run_dir.folder.mkdir(parents=True)
    if content is not None:
        run_dir.progress.write_bytes(content)
    assert read_progress(run_dir) is None


def test_progress_is_read_as_it_was_written(run_dir: RunDir) -> None:
    for progress in (Progress(1, 2, 3, 0.5, 1e9), Progress(2, 0, 3, None, 1e9 + 0.25)):
        write_progress(run_dir, progress)
        assert read_progress(run_dir) == progress


def test_report_of_a_run_that_trains_says_how_far_it_is(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")
    write_progress(run_dir, Progress(2, 1, 4, 90.0, 1e9))
    report = build_report(run_dir)
    assert report["progress"]["update"] == 1
    said = left(report)
    assert said.startswith(
        "1 of 2 steps done; step step-2 at update 1 of 4; 3 updates left in the chain, about 4 min 30 s"
    )
    assert f"As this was written: {said}.\n" in markdown(report)


def test_report_of_a_finished_run_says_nothing_of_progress(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    write_progress(run_dir, Progress(2, 1, 4, 90.0, 1e9))
    assert build_report(run_dir)["progress"] is None
    assert "As this was written" not in markdown(build_report(run_dir))


# --- what is said ---


def said_by(run_dir: RunDir, diagnostics: bool = True) -> list[list[str]]:
    """What is said at each report of a run of two steps."""
    host, found = FakeHost(), []
    host.on_report = lambda: found.append(news(build_report(run_dir)))
    run(host, run_dir, make_plan(diagnostics=DIAGNOSTICS if diagnostics else None))
    return found


def test_what_is_said_and_when(run_dir: RunDir) -> None:
    before_1, after_1, before_2, after_2, end = said_by(run_dir)
    assert before_1 == ["step 1 of 2, step-1: 3 rows of pairs-1.jsonl; reference M_0, mean γ_ref -4.00"]
    assert after_1 == after_2 == []  # M_t has not been looked at
    assert before_2[2] == "step 2 of 2, step-2: 4 rows of pairs-2.jsonl; reference M_1, mean γ_ref +4.00"
    on_an_idle_machine = re.sub(r"\b\d+ s\b", "0 s", before_2[0])  # it may be busy
    assert on_an_idle_machine == (
        "step 1 of 2, step-1, is done: 2 updates (training 0 s, reference 0 s, export 0 s), loss 0.6931 → 0.6000; M_1 "
        "is in step-1"
    )
    # γ = 2θx from θ = −1 to 1; D_1 = 1, 2, 3; val = 1, 2, −1, 2; test = −4
    assert before_2[1] == (
        "step 1 of 2, step-1, changed: its own rows γ -4.00 → +4.00, accuracy 0.000 → 1.000; held-out val γ -2.00 → "
        "+2.00, accuracy 0.250 → 0.750; held-out test γ +8.00 → -8.00, accuracy 1.000 → 0.000"
    )
    assert [line.split(":")[0] for line in end] == ["step 2 of 2, step-2, is done", "step 2 of 2, step-2, changed"]


def test_without_diagnostics_the_held_out_sets_tell(run_dir: RunDir) -> None:
    lines = said_by(run_dir, diagnostics=False)[2]
    assert lines[1].startswith("step 1 of 2, step-1, changed: held-out val γ -2.00 → +2.00, accuracy 0.250 → 0.750; ")


def test_step_that_nothing_was_measured_of_says_so(run_dir: RunDir) -> None:
    host, found = FakeHost(), []
    host.on_report = lambda: found.append(news(build_report(run_dir)))
    run(host, run_dir, make_plan(heldout={}))
    assert found[2][1] == "step 1 of 2, step-1, changed: nothing was measured"


def test_step_without_reference_table_says_less(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    run_dir.reference(make_plan().steps[0]).unlink()
    assert step_begins(build_report(run_dir), 1) == "step 1 of 2, step-1: 3 rows of pairs-1.jsonl; reference M_0"


def test_last_lines_say_where_everything_is(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    models, report, following = run_ended(build_report(run_dir), run_dir.root)
    root = run_dir.root
    assert (
        models
        == f"stepwise DPO is done: M_2, the final model, is in {root}; M_1 in {root}/step-1; M_2 in {root}/step-2"
    )
    assert report == f"report, with no remarks: {root}/sdpo/report.html"
    assert following == (
        "next: axolotl evaluate, inference, merge-lora and lm-eval take the same file; "
        f"axolotl sdpo report {root} OTHER_OUTPUT_DIR compares with another run"
    )


def test_remarks_stand_below_the_report_s_path(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    path = run_dir.reference(make_plan().steps[0])
    path.unlink()
    first, remark = run_ended(build_report(run_dir), run_dir.root)[1].splitlines()
    assert first == f"report, with 1 remark: {run_dir.root}/sdpo/report.html"
    assert remark.startswith("  sdpo/reference/step-1.safetensors cannot be used")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.5, "1 min"),
        (61.0, "1 min 1 s"),
        (3599.4, "59 min 59 s"),
        (3600.0, "1 h"),
        (12_000.0, "3 h 20 min"),
        (3_600_000.0, "1,000 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
