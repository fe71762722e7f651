"""The report of a run once more, also of one that died, made from what the run left on disk."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.compare import compare as side_by_side
from sdpo_plugin.report.render import markdown
from sdpo_plugin.report.write import write_report
from sdpo_plugin.run_dir.files import require_no_link
from sdpo_plugin.run_dir.paths import RunDir


def report(output_dir: Path) -> None:
    """Make the report of a run, print it and write it.

    Raises:
        OutputError: there is no run, or the report cannot be read or written.
    """
    run = RunDir(output_dir)
    try:
        made = build_report(run)
        _print(markdown(made))
        require_no_link(run.folder)
        write_report(run, made, draw=True)
    except OSError as error:
        raise OutputError(f"the report could not be read or written in {run.root}: {error}") from error


def compare(output_dirs: Sequence[Path]) -> None:
    """Print runs side by side; nothing is written.

    Raises:
        OutputError: one of them is no run, or cannot be read.
    """
    try:
        _print(side_by_side(output_dirs))
    except OSError as error:
        raise OutputError(f"the runs could not be read: {error}") from error


def _print(text: str) -> None:
    """Print, also where γ cannot be encoded, and where the reader has closed the pipe."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
