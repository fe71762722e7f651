"""Whether a run begins in a run directory or is resumed there; what stands in the way of either is refused."""

from collections.abc import Sequence
from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.checkpoints import TO_RESUME
from sdpo_plugin.run_dir.cleanup import clear, sweep
from sdpo_plugin.run_dir.fresh import require_fresh
from sdpo_plugin.run_dir.growth import Wanted
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import FRESH, Start, find_start


def open_run(run: RunDir, names: Sequence[str], wanted: Wanted, asked: str | None, *, resumes: bool) -> Start:
    """Where the run begins. What an earlier one that came to nothing has left is removed.

    Args:
        run: the directory.
        names: in whose places a model may stand already.
        wanted: the run that the config asks for.
        asked: `resume_from_checkpoint`.
        resumes: the user wants a run that is there to be resumed.

    Raises:
        OutputError: there is nothing to resume, or it is damaged; or there is, and the user has not asked for it.
        ConfigError: the run cannot have further steps.
    """
    if not resumes or not run.ledger.exists():
        if asked:
            raise OutputError(
                f"resume_from_checkpoint: {asked!r}, but output_dir: {str(run.root)!r} holds no run to "
                f"resume; set the output_dir of that run, or {TO_RESUME}, which begins where there is none."
            )
        require_fresh(run, names)
        clear(run)
        return FRESH
    whole_run = asked is None or Path(asked).resolve() == run.root.resolve()
    start = find_start(run, None if whole_run else Path(asked or ""), wanted)
    if start.action.kind == "nothing":
        assert start.ledger is not None
        sweep(run, start.ledger)
    return start
