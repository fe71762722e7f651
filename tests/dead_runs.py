"""Runs that died, runs that are resumed, and ledgers of every kind."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.checkpoints import about_checkpoint
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.run_dir.ledger import SCHEMA_VERSION, Ledger, StepRecord
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import find_start
from sdpo_plugin.run_dir.sealed import seal
from sdpo_plugin.run_dir.stored import write_stored
from sdpo_plugin.runner import run_steps
from tests.fakes import IDENTITY, FakeHost, HostDiedError, make_plan, run

# prepared, states of the steps, finished, saved
Life = tuple[bool, tuple[str, ...], bool, bool]


def ledger_of(state: Life, policy_init: str = "previous") -> Ledger:
    """A ledger of steps that each start from the model before them, or all from M_0."""
    prepared, states, finished, saved = state
    plan = make_plan([[1.0]] * len(states), policy_init=policy_init)
    records = tuple(StepRecord(value) for value in states)  # type: ignore[arg-type]
    layout = RunDir(Path())
    begun = [step for step, value in zip(plan.steps, states, strict=True) if value != "planned"]
    tables = {str(layout.reference(step)): "c" * 64 for step in begun}
    exports = {f"M_{index}": "d" * 64 for index, value in enumerate(states, 1) if value == "exported"}
    return Ledger("r", plan, IDENTITY, records, prepared, tables, exports, finished, saved)


def save_ledger(run_dir: RunDir, ledger: Ledger) -> None:
    """Write a ledger, whatever it says."""
    write_stored(run_dir.ledger, ledger, SCHEMA_VERSION)


def with_step(ledger: Ledger, index: int, **changes: object) -> Ledger:
    """The ledger, with other values in its plan for one step."""
    steps = [replace(step, **changes) if step.index == index else step for step in ledger.plan.steps]  # type: ignore[arg-type]
    return replace(ledger, plan=replace(ledger.plan, steps=tuple(steps)))


def die(run_dir: RunDir, call: str, host: FakeHost | None = None, plan: Plan | None = None) -> Ledger:
    """Start a run that dies in this call of its host; return its ledger."""
    host = host or FakeHost()
    host.dies_in = call
    with pytest.raises(HostDiedError):
        run(host, run_dir, plan)
    return Ledger.load(run_dir.ledger)


def resume(run_dir: RunDir, host: FakeHost, plan: Plan | None = None) -> Ledger:
    """Resume the run in a new process, to its end; return the ledger it ends with."""
    start, plan = find_start(run_dir), plan or make_plan()
    assert start.ledger is not None
    host.run_dir = run_dir
    journal = Journal(run_dir, host, plan, start.ledger)
    run_steps(plan, host, journal, start)
    return journal.ledger


def checkpoint(run_dir: RunDir, index: int, updates: int, about: Mapping[str, str] | None = None) -> Path:
    """A whole checkpoint of step ``index``."""
    ledger = Ledger.load(run_dir.ledger)
    step = ledger.plan.steps[index - 1]
    directory = run_dir.step(step) / f"checkpoint-{updates}"
    directory.mkdir(parents=True)
    (directory / "model.bin").write_bytes(b"0123456789")
    seal(directory, {**about_checkpoint(run_dir, ledger, step), **(about or {})})
    return directory
