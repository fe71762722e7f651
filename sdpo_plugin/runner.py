"""Stepwise DPO (sDPO, arXiv 2403.19270, §3) on one page.

For t = 1 … T: the policy as it stands, M_{t-1}, gives the log-probs of D_t and so is the reference; then it is trained
on D_t from where it stands and becomes M_t. With another `reference:` the same table is filled before step 1; with
`policy_init: base` the policy goes back to M_0 first.

The runner knows neither models nor trainers: a ``StepHost`` does the work. Each action returns at once where the
journal says that it is done, so that a run that died is resumed by the same path that a fresh one takes.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sdpo_plugin.plan import M_0, Plan, StepPlan, model_name
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import Hook, Ledger
from sdpo_plugin.run_dir.made_rows import MadeRows
from sdpo_plugin.run_dir.resume import FRESH, Start
from sdpo_plugin.step_host import StepHost, Training

Hooks = Mapping[Hook, Callable[[StepPlan, Ledger], MadeRows | None]]
"""The user's own code, by its key in the config. Every rank calls; rank 0 runs it; before_step may make D_t."""


def run_steps(plan: Plan, host: StepHost, journal: Journal, start: Start = FRESH, hooks: Hooks | None = None) -> None:
    """Train the whole chain, or what is left of it.

    Args:
        plan: the steps.
        host: does the work.
        journal: knows what is done, and keeps it.
        start: where a run is resumed.
        hooks: the user's own code before and after each step.

    Raises:
        HookError: it failed.
        ReferenceTableError: a step's table is not whole or belongs to other rows; the step has not begun.
        StartGateError: a step did not begin at its reference.
    """
    if start.model_dir is not None:
        host.load_policy(start.action.model, start.model_dir)
    prepare(plan, host, journal)
    for planned in plan.steps:
        step = pick_rows(before_step(planned, hooks or {}, journal), host, journal)
        make_reference(step, host, journal)
        train(step, host, journal, start.checkpoint_of(step))
        export(step, host, journal)
        after_step(step, hooks or {}, journal)
    finish(plan, host, journal)


def prepare(plan: Plan, host: StepHost, journal: Journal) -> None:
    """Compute what is computed before step 1, and keep an adapter M_0."""
    if journal.is_prepared:
        return
    early = host.early_tables(plan.steps, plan.heldout)
    if host.export_base_adapter(journal.staging):
        journal.publish_base_adapter()
    journal.record_prepared(early.steps, early.heldout)


def before_step(step: StepPlan, hooks: Hooks, journal: Journal) -> StepPlan:
    """Let the user's own code come before the step; the same step, with the rows that this has made for it."""
    if "before_step" not in hooks or not journal.is_due("before_step", step):
        return step
    made = hooks["before_step"](step, journal.ledger)
    journal.record_call("before_step", step, made)
    return step if made is None else made.plan.steps[step.index - 1]


def pick_rows(step: StepPlan, host: StepHost, journal: Journal) -> StepPlan:
    """Let M_{t-1} rank what is left of the pool, where it is to; the same step, with the rows that are easiest for it.

    The pass that ranks them is the reference pass of these rows.
    """
    if not step.is_unranked:
        return step
    picked = host.pick_rows(step)
    journal.record_picked(step, picked.plan, picked.rows, picked.tables, picked.seconds)
    return picked.plan.steps[step.index - 1]


def make_reference(step: StepPlan, host: StepHost, journal: Journal) -> None:
    """Fill the reference table of D_t, unless that was done before step 1, and the tables that tell of M_{t-1}.

    Benchmarks come first: a process that dies in them has no table to lose.
    """
    if journal.is_referenced(step):
        return
    model = model_name(step.index - 1)
    host.evaluate(model, journal.ledger.run_id)
    clock = _Clock()
    look_back(step, host, journal)
    looked_back = clock.lap()
    table = None if journal.has_table(step) else host.reference_table(step)
    heldout, seconds = host.heldout_tables(model, journal.to_hold(model)), clock.lap()
    sampled = host.sampled_tables(model, journal.to_sample(model, referenced=step))
    journal.record_reference(step, table, heldout, seconds, sampled, looked_back + clock.lap())
    host.report()


def look_back(step: StepPlan, host: StepHost, journal: Journal) -> None:
    """In a run that has grown by this step: ask the models before M_{t-1} what a run of all steps would have asked.

    A reference that stays what it is gives its tables of the new rows; for the report each model is asked about them.
    """
    if journal.has_looked_back(step):
        return
    steps, heldout = journal.of_external_reference(step)
    if steps:
        early = host.early_tables(steps, heldout)
        journal.record_early(early.steps, early.heldout)
    for back in journal.to_look_back(step):
        with host.another_model(back.model, back.directory):
            if back.references:
                early = host.early_tables(back.references, ())
                journal.record_early(early.steps, early.heldout)
            found = host.heldout_tables(back.model, back.heldout)
            journal.record_look_back(back, found, host.sampled_tables(back.model, back.steps))
    journal.record_looked_back(step)


def train(step: StepPlan, host: StepHost, journal: Journal, checkpoint: Path | None) -> None:
    """Make the policy M_t: from M_{t-1}, from M_0, or from a checkpoint of the step.

    A model that is trained and not exported is gone with its process; so the step counts as done when it is exported.
    """
    if journal.is_exported(step):
        return
    clock = _Clock()
    training = Training(journal.reference(step), journal.heldout(step), journal.about_checkpoint(step), checkpoint)
    journal.record(step, state="training", settings=host.settings(step))
    if step.policy_init == M_0 and step.index > 1:
        host.restart_policy()
    outcome = host.train_step(step, training)
    journal.record(
        step,
        state="trained",
        train_seconds=clock.lap() + outcome.earlier_seconds,
        first_loss=outcome.first_loss,
        final_loss=outcome.final_loss,
        num_optimizer_steps=outcome.num_optimizer_steps,
        beta=outcome.beta,
        refreshes=outcome.refreshes,
        refresh_seconds=outcome.refresh_seconds,
    )


def export(step: StepPlan, host: StepHost, journal: Journal) -> None:
    """Write M_t as a loadable model."""
    if journal.is_exported(step):
        return
    clock = _Clock()
    host.export_step(step, journal.staging)
    journal.publish(step)
    journal.record_export(step, clock.lap())
    host.report()


def after_step(step: StepPlan, hooks: Hooks, journal: Journal) -> None:
    """Let the user's own code see M_t."""
    if "after_step" in hooks and journal.is_due("after_step", step):
        hooks["after_step"](step, journal.ledger)
        journal.record_call("after_step", step)


def finish(plan: Plan, host: StepHost, journal: Journal) -> None:
    """Have M_T evaluated, and fill the tables that tell of it."""
    if journal.is_finished:
        return
    model = model_name(len(plan.steps))
    host.evaluate(model, journal.ledger.run_id)
    heldout, clock = host.heldout_tables(model, journal.to_hold(model)), _Clock()
    sampled = host.sampled_tables(model, journal.to_sample(model))
    journal.record_end(heldout, sampled, clock.lap())
    host.report()


class _Clock:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
