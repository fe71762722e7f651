"""Where a run goes on. The ledger alone is trusted; what it vouches for is checked before it is used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import remove_folder
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.overwrites import require_no_foreign_model
from sdpo_plugin.places import as_on_disk
from sdpo_plugin.plan import model_name
from sdpo_plugin.sealed import MARKERS, flaw, read_seal, remove, seal

M_0 = model_name(0)
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
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
        passed_over: what is missed on disk and not needed, each with the reason: newer checkpoints that are not
            whole, models that were deleted, or are back.
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
        OutputError: the ledger or a model is damaged, or a model that is needed is gone; ``asked`` cannot be used.
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
        model = None if checkpoint is not None else model_dir(run, ledger, action.model)
        return _with_models_as_on_disk(run, Start(ledger, action, model, checkpoint, passed_over))
    if action.kind == "nothing":  # M_T's double may be gone, as `export_steps: last` says
        return _finished(run, _with_models_as_on_disk(run, Start(ledger, action)))
    return _with_models_as_on_disk(run, Start(ledger, action, model_dir(run, ledger, action.model)))


def _with_models_as_on_disk(run: RunDir, start: Start) -> Start:
    """The same start; models that are not needed may have been deleted, or put back, and the ledger says so."""
    assert start.ledger is not None
    ledger, lines = as_on_disk(run, start.ledger, start.model_dir)
    return replace(start, ledger=ledger, passed_over=(*start.passed_over, *lines))


def _finished(run: RunDir, start: Start) -> Start:
    """The same start, if the final model is whole; one that is not is written again from M_T's directory.

    Raises:
        OutputError: there is none.
    """
    ledger = start.ledger
    assert ledger is not None
    model = model_name(len(ledger.steps))
    problem = flaw(run.root, {"run": ledger.run, "model": model}, ledger.final)
    if problem is None:
        return start
    if not ledger.steps[-1].kept:
        raise OutputError(
            f"{run.root} does not hold the final model that this run has written: {problem}. Restore it, or train "
            "again into another output_dir."
        )
    ledger = replace(ledger, saved=False)
    directory = model_dir(run, ledger, model)
    said = f"the final model in {run.root} is not whole ({problem}): it is written again from {directory}"
    return Start(ledger, next_action(ledger), directory, passed_over=(*start.passed_over, said))


def model_dir(run: RunDir, ledger: Ledger, model: str) -> Path | None:
    """The directory of an exported model; None for M_0 where that is the base model itself.

    Raises:
        OutputError: it is not what the ledger vouches for.
    """
    if model == M_0 and model not in ledger.exports:
        return None
    directory = run.start if model == M_0 else run.step(ledger.steps[int(model.removeprefix("M_")) - 1])
    problem = flaw(directory, {"run": ledger.run, "model": model}, ledger.exports.get(model))
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
        remove_folder(folder)


def sweep(run: RunDir, ledger: Ledger) -> None:
    """Remove what a death has left behind: models that the ledger says are not kept, files that were half written."""
    for path in (run.root / "sdpo").rglob(".*.tmp"):
        if not path.is_dir():
            path.unlink()
    for step in ledger.steps:
        if not step.kept and model_name(step.index) in ledger.exports:  # else its user has deleted it
            remove(run.step(step))


def close_run(run: RunDir, keep_last: bool) -> None:
    """Seal the final model, which the host has written, and record it; without ``keep_last`` its double in step T's
    place goes.

    Raises:
        OutputError: the ledger is damaged.
        OSError: a file cannot be read or written.
    """
    ledger = Ledger.load(run.ledger)
    last = len(ledger.steps)
    digest = seal(run.root, {"run": ledger.run, "model": model_name(last)}, only=_final_model(run.root))
    ledger = replace(ledger, saved=True, final=digest).record(last, kept=keep_last)
    ledger.save(run.ledger)
    sweep(run, ledger)


def _final_model(root: Path) -> list[Path]:
    """Weights, and what makes them loadable: not the card, which a user may edit, and not the host's logs."""
    weights = [path for pattern in WEIGHTS for path in root.glob(pattern) if path.name != "training_args.bin"]
    return weights + [root / name for name in MARKERS if (root / name).exists()]
