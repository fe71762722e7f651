"""Where a run goes on. The ledger alone is trusted; what it vouches for is checked before it is used."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdpo_plugin.errors import OutputError
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.overwrites import require_no_foreign_model
from sdpo_plugin.plan import model_name
from sdpo_plugin.sealed import MARKERS, flaw, read_seal, remove

M_0 = model_name(0)
TO_GO_ON = "set auto_resume_from_checkpoints: true"


@dataclass(frozen=True)
class Action:
    """What comes next.

    Attributes:
        kind: prepare: score what is scored before step 1. score: D_t and the held-out sets by M_{t-1}. train: train
            step t and export M_t. finish: score the held-out sets by M_T. save: let the host write the final model.
        step: t, or 0 where it is about no step.
        model: the model that has to be in memory, "M_0" … "M_T".
    """

    kind: Literal["prepare", "score", "train", "finish", "save", "nothing"]
    step: int
    model: str


def next_action(ledger: Ledger) -> Action:
    """What a process that has nothing in memory does next. A pure function of the ledger.

    A step that is trained but not exported exists nowhere but in its last checkpoint, and is trained from there.
    """
    last = model_name(len(ledger.steps))
    if not ledger.prepared:
        return Action("prepare", 0, M_0)
    for step in ledger.steps:
        if step.state == "planned":
            return Action("score", step.index, model_name(step.index - 1))
        if step.state != "exported":
            return Action("train", step.index, step.policy_init)
    if not ledger.finished:
        return Action("finish", 0, last)
    return Action("nothing" if ledger.saved else "save", 0, last)


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on.

    Attributes:
        ledger: of the run that goes on; None for a new one.
        action: what comes first.
        model_dir: where ``action.model`` is read from; None where it is the base model, or comes with the checkpoint.
        checkpoint: the checkpoint that the step under way goes on from.
        passed_over: newer checkpoints that are not whole, each with the reason.
    """

    ledger: Ledger | None
    action: Action
    model_dir: Path | None = None
    checkpoint: Path | None = None
    passed_over: tuple[str, ...] = ()


FRESH = Start(None, Action("prepare", 0, M_0))


def find_start(run: RunDir, asked: Path | None = None) -> Start:
    """Where the run in ``run`` goes on.

    Args:
        run: holds a ledger.
        asked: a checkpoint that the user wants the step under way to go on from, instead of the newest.

    Raises:
        OutputError: the ledger or a model that is needed is damaged; ``asked`` cannot be used.
    """
    ledger = _without_lost_table(Ledger.load(run.ledger), run)
    action = next_action(ledger)
    if asked is not None and action.kind != "train":
        raise OutputError(
            f"resume_from_checkpoint: {str(asked)!r} is of no use: no step is half trained (next: {action.kind}); "
            f"remove it and {TO_GO_ON}."
        )
    if action.kind == "train":
        record = ledger.steps[action.step - 1]
        checkpoint, passed_over = _checkpoint(run, ledger, record, asked)
        if checkpoint is not None:
            return Start(ledger, action, None, checkpoint, passed_over)
        return Start(ledger, action, model_dir(run, ledger, action.model), None, passed_over)
    if action.kind == "nothing":  # M_T's double may be gone, as `export_steps: last` says
        return Start(ledger, action)
    return Start(ledger, action, model_dir(run, ledger, action.model))


def model_dir(run: RunDir, ledger: Ledger, model: str) -> Path | None:
    """The directory of an exported model; None for M_0 where that is the base model itself.

    Raises:
        OutputError: it is not what the ledger vouches for.
    """
    if model not in ledger.exports:
        assert model == M_0
        return None
    directory = run.start if model == M_0 else run.step(ledger.steps[int(model.removeprefix("M_")) - 1])
    problem = flaw(directory, {"run": ledger.run, "model": model}, ledger.exports[model])
    if problem:
        raise OutputError(
            f"{directory} is not the {model} that this run has made: {problem}. Restore it, or train again into "
            "another output_dir."
        )
    return directory


def about_checkpoint(run: RunDir, ledger: Ledger, step: StepRecord) -> dict[str, str]:
    """What the seal of a checkpoint of ``step`` says: its run, its step, and the reference it was trained against."""
    return {"run": ledger.run, "step": step.name, "reference": ledger.tables[run.key(run.reference(step))]}


def _checkpoint(
    run: RunDir, ledger: Ledger, step: StepRecord, asked: Path | None
) -> tuple[Path | None, tuple[str, ...]]:
    about = about_checkpoint(run, ledger, step)
    if asked is not None:
        require_exists(asked)
        problem = flaw(asked, about)
        if problem:
            raise OutputError(
                f"resume_from_checkpoint: {str(asked)!r} is no checkpoint that step {step.name} can go on from: "
                f"{problem}; remove it and {TO_GO_ON} to take the newest whole one."
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
            f"{TO_GO_ON} to take the newest whole one."
        )


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a step, whole or not, in the order of their updates."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _without_lost_table(ledger: Ledger, run: RunDir) -> Ledger:
    """A step whose reference table was taken away is scored again, by M_{t-1}, which is on disk."""
    action = next_action(ledger)
    if action.kind != "train":
        return ledger
    record = ledger.steps[action.step - 1]
    path = run.reference(record)
    if path.exists() or record.reference != model_name(record.index - 1):
        return ledger
    tables = {key: checksum for key, checksum in ledger.tables.items() if key != run.key(path)}
    return replace(ledger, tables=tables).record(record.index, state="planned")


def require_fresh(run: RunDir, names: Sequence[str]) -> None:
    """Refuse an output directory that holds work of an earlier run; nothing is touched.

    Args:
        run: the directory.
        names: of the steps that would be trained into it.

    Raises:
        OutputError: it holds finished steps, checkpoints that could be gone on from, models in the steps' places, or
            a model of a run of another kind.
    """
    require_no_foreign_model(run)
    held = [name for name in names if any((run.root / name / marker).exists() for marker in MARKERS)]
    if run.ledger.exists():
        ledger = Ledger.load(run.ledger)
        done = [step.name for step in ledger.steps if step.state in ("trained", "exported")]
        begun = [step for step in ledger.steps if step.state == "training"]
        if done:
            raise OutputError(_refusal(run, f"holds finished steps of an earlier run ({', '.join(done)})"))
        if begun and (whole := [path for path in checkpoints(run.step(begun[0])) if _is_sealed(path)]):
            raise OutputError(_refusal(run, f"holds a half-trained step of an earlier run ({whole[-1]})"))
    if held:
        raise OutputError(
            f"output_dir: {str(run.root)!r} holds models in {', '.join(held)} that this run would overwrite, and "
            "nothing says how they were made; set another output_dir, or move or delete them."
        )


def _refusal(run: RunDir, what: str) -> str:
    return (
        f"output_dir: {str(run.root)!r} {what}, and training from the start would overwrite them; {TO_GO_ON} to go "
        "on where it stopped, or set another output_dir, or move or delete this one."
    )


def _is_sealed(path: Path) -> bool:
    try:
        read_seal(path)
    except ValueError:
        return False
    return True


def clear(run: RunDir) -> None:
    """Remove what a run that came to nothing has left: its ledger, tables, and a model half written."""
    run.ledger.unlink(missing_ok=True)
    for folder in (*run.tables, run.start, run.staging):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(run: RunDir, ledger: Ledger) -> None:
    """Remove what a death has left behind: models that the ledger says are not kept, files that were half written."""
    for path in (run.root / "sdpo").rglob(".*.tmp"):
        path.unlink()
    for step in ledger.steps:
        if not step.kept:
            remove(run.step(step))


def close_run(run: RunDir, keep_last: bool) -> None:
    """Record that the host has written the final model; without ``keep_last`` its double in step T's place goes.

    Raises:
        OutputError: the ledger is damaged.
    """
    ledger = replace(Ledger.load(run.ledger), saved=True)
    ledger.record(len(ledger.steps), kept=keep_last).save(run.ledger)
    sweep(run, Ledger.load(run.ledger))
