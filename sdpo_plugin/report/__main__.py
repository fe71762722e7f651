"""`python -m sdpo_plugin.report OUTPUT_DIR`: the report of a run once more, also of one that died."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdpo_plugin import crash
from sdpo_plugin.errors import SDPOError
from sdpo_plugin.report.build import build_report, write_report
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.files import require_no_link
from sdpo_plugin.run_dir.paths import RunDir


def main(arguments: Sequence[str]) -> int:
    """Make the report of a run and print it.

    Returns:
        The exit code: 0, or 1 where there is no report to be made. Wrong usage ends with 2, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sdpo_plugin.report",
        description="Make the report of a run again, from what it left on disk, and print it; also of a run that died. "
        "Writes sdpo/report.json and sdpo/report.md there.",
    )
    parser.add_argument("output_dir", type=Path, help="the output_dir of a run with rl: sdpo")
    run = RunDir(parser.parse_args(arguments).output_dir)
    try:
        report = build_report(run)
        _print(markdown(report))
        require_no_link(run.folder)
        write_report(run, report)
    except SDPOError as error:
        print(crash.lines(str(error)), file=sys.stderr)
        return 1
    except OSError as error:
        print(crash.lines(f"the report could not be read or written in {run.root}: {error}"), file=sys.stderr)
        return 1
    return 0


def _print(text: str) -> None:
    """Print, also where γ cannot be encoded, and where the reader has closed the pipe."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
