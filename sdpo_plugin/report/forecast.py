"""How far a run that is not finished has come, and how long it has to go."""

from dataclasses import dataclass

from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.progress import Progress


@dataclass(frozen=True)
class Forecast:
    """Where a run stands.

    Attributes:
        steps_done: steps whose models are on disk.
        step: t of the next one, 0 where all are done.
        name: of that step.
        update: updates of it that were made.
        num_updates: its updates.
        step_seconds: until its last update; None where no update has been timed yet.
        updates_left: of the whole chain, as far as its rows are made.
        seconds: until the end of the chain; likewise None, and where a hook has still to make the rows of a step.
        at: when the step under way last told of itself, in seconds since 1970; None where it has not.
    """

    steps_done: int
    step: int
    name: str
    update: int
    num_updates: int
    step_seconds: float | None
    updates_left: int
    seconds: float | None
    at: float | None


def forecast(ledger: Ledger, progress: Progress | None) -> Forecast | None:
    """Where a run stands, from its ledger and what the step under way last told; None where it is finished.

    Updates take as long as those of the step under way, or else as those before; reference passes as long a row, and
    diagnostics and exports as long a step, as they did.
    """
    if ledger.finished:
        return None
    left = [step for step, record in ledger.steps if record.state != "exported"]
    done = [(step, record) for step, record in ledger.steps if record.state == "exported"]
    if not left:
        return Forecast(len(done), 0, "", 0, 0, 0.0, 0, None, None)
    first = left[0]
    if progress is not None and progress.step != first.index:
        progress = None  # of a step that is done
    update, updates = (0, first.num_optimizer_steps) if progress is None else (progress.update, progress.num_updates)
    rate = _seconds_per_update(ledger) if progress is None else progress.seconds_per_update
    to_come = sum(step.num_optimizer_steps for step in left[1:])
    step_left = max(0, updates - update)
    is_known = not any(step.is_awaited for step in left)
    passes = _other_seconds(ledger, sum(step.num_rows for step in left[1:]), len(left))
    return Forecast(
        steps_done=len(done),
        step=first.index,
        name=first.name,
        update=update,
        num_updates=updates,
        step_seconds=None if rate is None else step_left * rate,
        updates_left=step_left + to_come,
        seconds=(step_left + to_come) * rate + passes if is_known and rate is not None else None,
        at=None if progress is None else progress.at,
    )


def _seconds_per_update(ledger: Ledger) -> float | None:
    """Of the steps that were trained."""
    trained = [record for record in ledger.records if record.train_seconds and record.num_optimizer_steps]
    updates = sum(record.num_optimizer_steps or 0 for record in trained)
    return sum(record.train_seconds or 0.0 for record in trained) / updates if updates else None


def _other_seconds(ledger: Ledger, num_rows: int, num_steps: int) -> float:
    """Of the reference passes of rows to come, and of diagnostics and exports of steps that are not done."""
    begun = [(step, record) for step, record in ledger.steps if record.log_probs_seconds is not None]
    rows = sum(step.num_rows for step, _ in begun)
    a_row = sum(record.log_probs_seconds or 0.0 for _, record in begun) / rows if rows else 0.0
    a_step = sum((record.diagnostics_seconds or 0.0) + (record.export_seconds or 0.0) for _, record in begun)
    return a_row * num_rows + (a_step / len(begun) if begun else 0.0) * num_steps
