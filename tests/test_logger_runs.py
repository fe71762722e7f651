"""What is kept of the runs in loggers: written whole, read back as it was, and not believed."""

import json
from pathlib import Path

import pytest

from sdpo_plugin.run_dir.cleanup import clear
from sdpo_plugin.run_dir.loggers import LoggerRuns, read_logger_runs, write_logger_runs
from sdpo_plugin.run_dir.paths import RunDir

RUNS = LoggerRuns(2, {"wandb": {"id": "8f3k2x1c"}, "trackio": {"project": "chains", "name": "calm-sea-1"}})


def test_read_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_logger_runs(run, RUNS)
    assert run.loggers == tmp_path / "sdpo" / "loggers.json"
    assert read_logger_runs(run) == RUNS


def test_nothing_is_kept_of_a_new_run(tmp_path: Path) -> None:
    assert read_logger_runs(RunDir(tmp_path)) == LoggerRuns(0, {})


def test_a_run_that_came_to_nothing_leaves_none(tmp_path: Path) -> None:
    """The next one would go on in its runs."""
    run = RunDir(tmp_path)
    write_logger_runs(run, RUNS)
    clear(run)
    assert not run.loggers.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", r"\[\] is no JSON object"),
        (json.dumps({"processes": -1, "runs": {}}), "processes is -1"),
        (json.dumps({"processes": 1, "runs": {"wandb": {"id": 3}}}), "runs.wandb.id is 3"),
        (json.dumps({"processes": 1, "runs": {}, "more": 1}), "more is 1"),
    ],
)
def test_damaged(tmp_path: Path, text: str, said: str) -> None:
    run = RunDir(tmp_path)
    run.folder.mkdir()
    run.loggers.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_logger_runs(run)
