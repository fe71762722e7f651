"""The checkpoints of a step, and which of them the run can be resumed from."""

from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import flaw

KEY_TO_RESUME = "auto_resume_from_checkpoints: true"
TO_RESUME = f"set {KEY_TO_RESUME}"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a step, whole or not, in the order of their updates."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def about_checkpoint(run: RunDir, ledger: Ledger, step: StepPlan) -> dict[str, str]:
    """The text of the seal of a checkpoint of ``step``: its run, its step, and the reference it is trained against."""
    return {"run": ledger.run_id, "step": step.name, "reference": ledger.tables[run.key(run.reference(step))]}


def checkpoint_to_resume(
    run: RunDir, ledger: Ledger, step: StepPlan, asked: Path | None
) -> tuple[Path | None, tuple[str, ...]]:
    """The newest whole checkpoint of a half-trained step, or ``asked``; and a line on each that is passed over.

    Raises:
        OutputError: ``asked`` is not there, or is no whole checkpoint of this step.
    """
    about = about_checkpoint(run, ledger, step)
    if asked is not None:
        require_exists(asked)
        problem = flaw(asked, about)
        if problem:
            raise OutputError(
                f"resume_from_checkpoint: {str(asked)!r} is no checkpoint that step {step.name} can be resumed from: "
                f"{problem}; remove it and {TO_RESUME} to take the newest whole one."
            )
        return asked, ()
    passed_over: list[str] = []
    for path in reversed(checkpoints(run.step(step))):
        problem = flaw(path, about)
        if problem is None:
            return path, tuple(passed_over)
        passed_over.append(f"{path} is passed over: {problem}")
    return None, tuple(passed_over)


def require_exists(asked: Path) -> None:
    """Refuse a checkpoint that is not there; what is there is looked at when its step is known.

    Raises:
        OutputError: it names the path.
    """
    if not asked.exists():
        raise OutputError(
            f"resume_from_checkpoint: {str(asked)!r} does not exist; set the path of a checkpoint, or remove it and "
            f"{TO_RESUME} to take the newest whole one."
        )
