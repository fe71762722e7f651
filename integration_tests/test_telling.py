"""What a run tells: lines where a step begins and has ended, progress while it trains, where everything is at the end,
how to resume it where it dies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.deaths import PLUGINS
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import ways_to_go_on
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.progress import read_progress


def train(host: Host, model: Path, sets: list[Config], folder: Path, fault: str, **config: object) -> Result:
    """A run of 6 and 8 updates, with a second plugin that makes a fault."""
    made = sdpo_config(base_config(model, sets, folder, **config), plugins=PLUGINS)
    return host.train(write_config(folder / "config.yaml", made), env={"SDPO_TEST_FAULT": fault})


def ours(log: str) -> list[str]:
    """What the plugin has logged, line by line."""
    return re.findall(r"\[axolotl\.sdpo_plugin\] (.*)", log)


@pytest.fixture(scope="module")
def whole(
    host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run without bars, which tells its progress after every update; its output directory and log."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(host, model, two_sets, folder, "often:", val_set_size=0.25).check()
    return folder / "out", result.log_text


def test_a_step_is_told_where_it_begins_and_when_its_model_has_been_looked_at(whole: tuple[Path, str]) -> None:
    out, log = whole
    report = read_report(out)
    lines = [line for line in ours(log) if line.startswith("step ") and "update" not in line.split(",")[1]]
    told = [line.split(":")[0] for line in lines if re.match(r"step \d of 2", line)]
    assert told == [
        "step 1 of 2, step-1",
        "step 1 of 2, step-1, is done",
        "step 1 of 2, step-1, changed",
        "step 2 of 2, step-2",
        "step 2 of 2, step-2, is done",
        "step 2 of 2, step-2, changed",
    ]
    gamma = [row[0] for row in report["train"]["gamma"]]
    assert f"changed: its own rows γ {gamma[0]:+.2f} → {gamma[1]:+.2f}, accuracy " in log


def test_progress_counts_down_to_the_end_of_the_chain(whole: tuple[Path, str]) -> None:
    out, log = whole
    steps = read_report(out)["steps"]
    updates = [step["num_optimizer_steps"] for step in steps]
    told = re.findall(r"step (\d), step-\d: update (\d+) of (\d+), \S+ .*? left in the step, .* in the chain", log)
    assert [tuple(map(int, line)) for line in told] == [
        (step, update, total) for step, total in enumerate(updates, 1) for update in range(1, total + 1)
    ]
    last = read_progress(RunDir(out))
    assert last is not None
    assert (last.step, last.update, last.num_updates) == (2, updates[1], updates[1])


def test_the_last_lines_say_where_everything_is(whole: tuple[Path, str]) -> None:
    out, log = whole
    at_end = ours(log)[-3:]
    assert at_end[0].startswith(f"stepwise DPO is done: M_2, the final model, is in {out}; M_1 in {out}/step-1; ")
    assert at_end[1].endswith(f": {out}/sdpo/report.html")
    assert at_end[2].startswith("next: axolotl evaluate, ")


def test_the_last_line_of_a_dead_run_says_how_to_resume_it_and_its_report_how_far_it_came(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    result = train(host, model, two_sets, tmp_path, "raise:2:3:0")
    out = tmp_path / "out"
    assert (result.returncode, result.timed_out) == (1, False)
    way = f"what was finished is in {out}; to resume, run the same command with auto_resume_from_checkpoints: true."
    assert ways_to_go_on(result) == [way]
    assert result.log_text.rstrip().endswith(f"sdpo_plugin: {way}")
    assert re.search(r"step 1/2 step-1: .*chain: \d+ s left", result.log_text)  # behind the bar
    shown = host.run(["sdpo", "report", str(out)], tmp_path).check().log_text
    report = read_report(out)
    assert (report["finished"], report["progress"]["steps_done"], report["progress"]["step"]) == (False, 1, 2)
    assert re.search(
        r"1 of 2 steps done; step step-2 at update 2 of \d; \d updates left in the chain, about \d+ s", shown
    )


def test_a_run_that_has_not_begun_has_nothing_to_resume(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    result = train(host, model, two_sets, tmp_path, "", sdpo={"reference": "no/such-model"})
    assert result.returncode != 0
    assert ways_to_go_on(result) == []
