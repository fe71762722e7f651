"""What a run tells of itself: its report, written anew, with the lines that the console gets; the last line of a dead
run. For rank 0."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sdpo_plugin import crash
from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.report.build import report_run
from sdpo_plugin.report.lines import news, run_ended
from sdpo_plugin.report.logged import Logged, logged
from sdpo_plugin.run_dir.checkpoints import KEY_TO_RESUME
from sdpo_plugin.run_dir.history import save_history
from sdpo_plugin.run_dir.paths import RunDir

LOG = logging.getLogger("axolotl.sdpo_plugin")


def tell(run: RunDir) -> Logged:
    """Write the report of a run under way; say what a step has done, and which one begins; what loggers get of it."""
    with _or_say_so():
        report = report_run(run)
        for line in news(report):
            LOG.info(line)
        pictures = sorted(run.folder.glob("*.png")) if report["finished"] else []
        return replace(logged(report), pictures=pictures)
    return Logged()


def tell_the_end(run: RunDir) -> None:
    """Write the report of a run that is over; say where everything is."""
    with _or_say_so():
        for line in run_ended(report_run(run), run.root):
            LOG.info(line)


def keep_history(run: RunDir, step: StepPlan, logged: Iterable[Mapping[str, Any]]) -> None:
    """Keep what the host logged in the step that was just trained; of a resumed one the checkpoint had the rest.

    A trained step is worth more than its curve: where that cannot be written, the log says so.
    """
    try:
        save_history(run, step, logged)
    except OutputError as error:
        LOG.warning("the report will have no curve of step %s: %s", step.name, error)


@contextmanager
def _or_say_so() -> Iterator[None]:
    """A report that cannot be written stops nothing: what is trained is on disk, and it can be made again."""
    try:
        yield
    except OutputError as error:
        LOG.warning("the report could not be made: %s", error)


def can_be_resumed(run: RunDir | None) -> None:
    """From now on let the last line of this process, if it dies, say how to resume this run; None: there is none."""
    text = "what was finished is in {}; to resume, run the same command with {}."
    crash.say_last(None if run is None else text.format(run.root, KEY_TO_RESUME))
