"""`python -m sdpo_plugin report`: what it prints, writes, and says where there is nothing to report."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sdpo_plugin
from sdpo_plugin.cli import sdpo
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.html import html
from sdpo_plugin.report.pictures import CAPTIONS
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import die, save_ledger
from tests.fakes import FakeHost, make_plan, run


@pytest.fixture
def finished(run_dir: RunDir) -> RunDir:
    run(FakeHost(), run_dir)
    return run_dir


def main(arguments: list[str]) -> int:
    """The command within this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        sdpo(["report", *arguments], prog_name="python -m sdpo_plugin")
    return int(caught.value.code or 0)


def environment() -> dict[str, str]:
    """Of a process that finds this package, and whatever else this one finds."""
    package_root = str(Path(sdpo_plugin.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))}


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "sdpo_plugin", "report", *arguments],
        env={**environment(), "PYTHONIOENCODING": "utf-8", **options},  # type: ignore[dict-item]
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_report_is_made_and_printed(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished.root)]) == 0
    report = build_report(finished)
    assert capsys.readouterr() == (markdown(report) + "\n", "")
    assert json.loads(finished.report.read_text()) == report
    written = finished.report.with_suffix(".md").read_text(encoding="utf-8")
    assert written == markdown(report, list(CAPTIONS.items()))
    assert {name for name in CAPTIONS if not (finished.folder / name).exists()} == set()
    assert finished.report.with_suffix(".html").read_text(encoding="utf-8") == html(report)


def test_report_of_a_run_that_lost_a_table_is_made_and_says_so(finished: RunDir) -> None:
    finished.reference(make_plan().steps[0]).unlink()
    done = command(str(finished.root))
    assert (done.returncode, done.stderr) == (0, "")
    assert "- sdpo/reference/step-1.safetensors cannot be used, so its numbers are missing here: " in done.stdout
    assert json.loads(finished.report.read_text())["steps"][0]["gamma_ref"] is None


def test_help_is_help() -> None:
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m sdpo_plugin report [OPTIONS] OUTPUT_DIR...\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Missing argument 'OUTPUT_DIR...'."),
        (["--colour"], "No such option"),
    ],
    ids=["none", "option"],
)
def test_wrong_usage_ends_with_2(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: python -m sdpo_plugin report [OPTIONS] OUTPUT_DIR...\n")
    assert f"Error: {why}" in said.err.splitlines()[-1]


def nothing(run_dir: RunDir) -> None:
    pass


def a_file(run_dir: RunDir) -> None:
    run_dir.root.touch()


def an_empty_directory(run_dir: RunDir) -> None:
    run_dir.root.mkdir()


def without_ledger(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    run_dir.ledger.unlink()


def torn_ledger(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    run_dir.ledger.write_text("{")


def directory_for_ledger(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    run_dir.ledger.unlink()
    run_dir.ledger.mkdir()


def fewer_records(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    ledger = Ledger.load(run_dir.ledger)
    exports = {model: digest for model, digest in ledger.exports.items() if model != "M_2"}
    save_ledger(run_dir, dataclasses.replace(ledger, records=ledger.records[:1], exports=exports))


def nothing_but_a_plan(run_dir: RunDir) -> None:
    run_dir.plan.parent.mkdir(parents=True)
    run_dir.plan.write_text("{}")


def no_place_to_write(run_dir: RunDir) -> None:
    """Also for root, who may write everywhere."""
    run(FakeHost(), run_dir)
    run_dir.report.mkdir()


def link_out(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    (run_dir.root / "sdpo").rename(run_dir.root.parent / "elsewhere")
    (run_dir.root / "sdpo").symlink_to(run_dir.root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (nothing, "{out} does not exist; give the output_dir of a run."),
        (a_file, "{out} is no directory; give the output_dir of a run."),
        (an_empty_directory, "{out} holds no run: {out}/sdpo/plan.json does not exist; give the output_dir of a run"),
        (without_ledger, "{out}/sdpo/ledger.json does not exist: the run died as it began; begin it again"),
        (nothing_but_a_plan, "{out}/sdpo/ledger.json does not exist: the run died as it began; begin it again"),
        (torn_ledger, "{out}/sdpo/ledger.json is not a ledger of schema version 2 (EOF while parsing"),
        (directory_for_ledger, "{out}/sdpo/ledger.json is not a ledger of schema version 2 ([Errno 21] Is a directory"),
        (fewer_records, "{out}/sdpo/ledger.json is not a ledger of schema version 2 (1 records for 2 steps); restore"),
        (no_place_to_write, "the report could not be read or written in {out}: [Errno 21] Is a directory: "),
        (link_out, "{out}/sdpo is a symbolic link to {out}/../elsewhere, and a run writes nothing outside of its"),
    ],
)
def test_each_error_is_one_message_and_ends_with_1(
    run_dir: RunDir, prepare: Callable[[RunDir], None], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(run_dir)
    assert main([str(run_dir.root)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"sdpo_plugin: [^\n]+\n", said), said
    assert why.format(out=run_dir.root).replace("/out/../", "/") in said


def test_error_of_the_command_is_no_traceback(tmp_path: Path) -> None:
    done = command(str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sdpo_plugin: {tmp_path / 'nowhere'} does not exist; give the output_dir of a run.\n"


def test_reader_that_has_seen_enough_is_no_error(finished: RunDir) -> None:
    """`| head`; the report is on disk all the same."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "sdpo_plugin", "report", str(finished.root)],
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(finished.report.read_text()) == build_report(finished)


def test_terminal_without_greek_letters_gets_the_report(finished: RunDir) -> None:
    done = command(str(finished.root), PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean ?_ref" in done.stdout


def test_report_is_made_without_plan_json(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    finished.plan.unlink()
    assert main([str(finished.root)]) == 0
    assert capsys.readouterr() == (markdown(build_report(finished)) + "\n", "")


def test_run_that_died_has_a_report_too(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    die(run_dir, "train M_1 on D_2")
    assert main([str(run_dir.root)]) == 0
    assert "Steps: 2, not finished." in capsys.readouterr().out
    assert json.loads(run_dir.report.read_text())["finished"] is False
