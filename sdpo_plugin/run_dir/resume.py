"""The start of a run that is resumed. The ledger alone is trusted; all that it vouches for is checked before use."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import M_0, StepPlan, model_name
from sdpo_plugin.run_dir.checkpoints import TO_RESUME, checkpoint_to_resume
from sdpo_plugin.run_dir.fresh import require_free
from sdpo_plugin.run_dir.growth import Wanted, grown, keep_final_model, needs_final_model
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.made_rows import kept_rows
from sdpo_plugin.run_dir.models import about_model, final_model_flaw, model_dir
from sdpo_plugin.run_dir.next_action import Action, next_action
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import flaw, is_gone, read_seal


@dataclass(frozen=True)
class Start:
    """The start of a process: where its run begins or is resumed.

    Attributes:
        ledger: of the run that is resumed; None for a new one.
        action: what comes first.
        model_dir: where ``action.model`` is read from; None where it is the base model, or comes with the checkpoint.
        checkpoint: the checkpoint that the half-trained step is resumed from.
        passed_over: what is missed on disk and not needed, each with the reason: newer checkpoints that are not
            whole, models that were deleted, or are back; and that the run grows.
        from_final: M_T of the run that grows is its final model, and has no directory of its own yet.
    """

    ledger: Ledger | None
    action: Action
    model_dir: Path | None = None
    checkpoint: Path | None = None
    passed_over: tuple[str, ...] = ()
    from_final: bool = False

    def checkpoint_of(self, step: StepPlan) -> Path | None:
        """The checkpoint that this step is resumed from; None where it begins with the policy as it stands."""
        return self.checkpoint if step.index == self.action.step else None


FRESH = Start(None, Action("prepare", 0, M_0))


def find_start(run: RunDir, asked: Path | None = None, wanted: Wanted | None = None) -> Start:
    """The start of the run in ``run``, which is resumed. Nothing is written.

    Args:
        run: holds a ledger.
        asked: a checkpoint that the user wants the half-trained step to be resumed from, instead of the newest.
        wanted: the run that the config asks for, which may have steps after those of the ledger.

    Raises:
        OutputError: the ledger or a model is damaged, or a model that is needed is gone; ``asked`` cannot be used;
            a model stands in the place of a step that is new.
        ConfigError: the run cannot have further steps.
    """
    before = Ledger.load(run.ledger)
    ledger = before if wanted is None else grown(before, wanted)
    start = _start(run, _without_lost_table(ledger, run), asked, before if ledger is not before else None)
    if ledger is before:
        return start
    new = [step.name for step in ledger.plan.steps[len(before.records) :]]
    require_free(run, new)
    state = "is finished" if before.finished else f"has {len(before.records)} steps"
    said = f"the run in {run.root} {state}, and grows by {', '.join(new)}: {len(ledger.records)} steps"
    return replace(start, passed_over=(*start.passed_over, said))


def with_last_model(run: RunDir, start: Start) -> Start:
    """The same start; a final model that the run goes on from has been given the directory of its step.

    Raises:
        OutputError: it cannot be written.
    """
    if not start.from_final:
        return start
    assert start.ledger is not None
    ledger = keep_final_model(run, start.ledger)
    return replace(start, ledger=ledger, model_dir=model_dir(run, ledger, start.action.model), from_final=False)


def _start(run: RunDir, ledger: Ledger, asked: Path | None, grows_from: Ledger | None) -> Start:
    """The start of a run with this ledger.

    Args:
        run, asked: as in ``find_start``.
        ledger: of the run, with the steps that are new.
        grows_from: its ledger without them; None where there are none.
    """
    action = next_action(ledger)
    if asked is not None and action.kind != "train":
        raise OutputError(
            f"resume_from_checkpoint: {str(asked)!r} is of no use: no step is half trained (next: {action.kind}); "
            f"remove it and {TO_RESUME}."
        )
    if action.kind == "train":
        checkpoint, passed_over = checkpoint_to_resume(run, ledger, ledger.plan.steps[action.step - 1], asked)
        model = None if checkpoint is not None else model_dir(run, ledger, action.model)
        return _with_models_as_on_disk(run, ledger, Start(ledger, action, model, checkpoint, passed_over))
    if grows_from is not None and needs_final_model(run, grows_from):
        return _with_models_as_on_disk(run, ledger, Start(ledger, action, from_final=True))
    if action.kind == "nothing":  # M_T's double may be gone, as `export_steps: last` says
        return _finished(run, _with_models_as_on_disk(run, ledger, Start(ledger, action)))
    return _with_models_as_on_disk(run, ledger, Start(ledger, action, model_dir(run, ledger, action.model)))


def steps_with_made_rows(run: RunDir) -> tuple[str, ...]:
    """The names of the steps whose rows a hook of the run has made, if there is a run to resume.

    Raises:
        OutputError: the ledger is damaged; rows are missing, or have been changed.
    """
    return kept_rows(run, Ledger.load(run.ledger)) if run.ledger.exists() else ()


def _without_lost_table(ledger: Ledger, run: RunDir) -> Ledger:
    """A step whose reference table was taken away is planned again, if its reference is M_{t-1}, which is on disk."""
    action = next_action(ledger)
    if action.kind != "train":
        return ledger
    step = ledger.plan.steps[action.step - 1]
    path = run.reference(step)
    if path.exists() or step.reference != model_name(step.index - 1):
        return ledger
    model = model_name(step.index - 1)
    lost = [path, *(run.heldout(model, column) for column in range(len(ledger.plan.heldout)))]
    lost += [run.sample(model, other) for other in ledger.plan.steps]
    tables = {key: digest for key, digest in ledger.tables.items() if key not in map(run.key, lost)}
    return replace(ledger, tables=tables).record(step.index, state="planned")


def _finished(run: RunDir, start: Start) -> Start:
    """The same start, if the final model is whole; one that is not is written again from M_T's directory.

    Raises:
        OutputError: there is none.
    """
    assert start.ledger is not None
    problem = final_model_flaw(run, start.ledger)
    if problem is None:
        return start
    if not start.ledger.records[-1].kept:
        raise OutputError(
            f"{run.root} does not hold the final model that this run has written: {problem}. Restore it, or train "
            "again into another output_dir."
        )
    ledger = replace(start.ledger, saved=False)
    directory = model_dir(run, ledger, ledger.last_model)
    said = f"the final model in {run.root} is not whole ({problem}): it is written again from {directory}"
    return Start(ledger, next_action(ledger), directory, passed_over=(*start.passed_over, said))


def _with_models_as_on_disk(run: RunDir, ledger: Ledger, start: Start) -> Start:
    """The same start; a model that its user has deleted is not kept in its ledger, and one that is back is.

    Files are looked at, not read: every byte is checked of the model that is needed, and of no other.

    Raises:
        OutputError: a model is damaged.
    """
    lines = []
    for index, digest, line in list(_moved_models(run, ledger, start.model_dir)):
        ledger = _with_model(ledger, index, digest)
        lines.append(line)
    return replace(start, ledger=ledger, passed_over=(*start.passed_over, *lines))


def _moved_models(run: RunDir, ledger: Ledger, checked: Path | None) -> Iterator[tuple[int, str | None, str]]:
    """Each model that was deleted or put back: t, the digest of its seal, and a line for the log."""
    for step, record in ledger.steps:
        model, directory = model_name(step.index), run.step(step)
        if record.state != "exported" or (record.kept and directory == checked):
            continue
        problem = flaw(directory, about_model(ledger, model), ledger.exports.get(model), deep=False)
        if not record.kept:
            if model not in ledger.exports and problem is None:
                yield step.index, read_seal(directory).digest, f"{directory} is back: {model} was missing before"
        elif is_gone(directory):
            line = f"{directory} has been deleted: the run resumes without {model}, which it does not need"
            yield step.index, None, line
        elif problem:
            raise OutputError(
                f"{directory} is not the {model} that this run has made: {problem}. Resuming does not need it: "
                "restore it, or delete the whole directory to resume without it."
            )


def _with_model(ledger: Ledger, index: int, digest: str | None) -> Ledger:
    """M_t is there, sealed with this digest; None: its user has deleted it.

    Without a digest it is not this run's to remove, should its user put it back.
    """
    others = {model: found for model, found in ledger.exports.items() if model != model_name(index)}
    found = {} if digest is None else {model_name(index): digest}
    return replace(ledger.record(index, kept=digest is not None), exports=others | found)
