"""Runs that died, and ledgers of every kind."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.plan import Plan
from sdpo_plugin.resume import about_checkpoint
from sdpo_plugin.runner import run_steps
from sdpo_plugin.sealed import seal
from tests.fakes import IDENTITY, FakeHost, HostDiedError, make_plan

# prepared, states of the steps, finished, saved
Life = tuple[bool, tuple[str, ...], bool, bool]


def ledger_of(state: Life, init: str = "previous") -> Ledger:
    """A ledger of steps that go on from one another, or all from M_0."""
    prepared, states, finished, saved = state
    steps = tuple(
        StepRecord(index, f"step-{index}", f"M_{index - 1}", f"M_{index - 1 if init == 'previous' else 0}", value)  # type: ignore[arg-type]
        for index, value in enumerate(states, 1)
    )
    layout = RunDir(Path())
    tables = {str(layout.reference(step)): "c" * 64 for step in steps if step.state != "planned"}
    exports = {f"M_{step.index}": "d" * 64 for step in steps if step.state == "exported"}
    return Ledger("r", "p" * 64, IDENTITY, steps, prepared, tables, exports, finished, saved)


def die(run: RunDir, call: str, host: FakeHost | None = None, plan: Plan | None = None) -> Ledger:
    """Let a run die in this call; its ledger."""
    host, plan = host or FakeHost(), plan or make_plan()
    host.dies_in = call
    with pytest.raises(HostDiedError):
        run_steps(plan, host, run, Ledger.begin(plan, IDENTITY), host.progress)
    return Ledger.load(run.ledger)


def checkpoint(run: RunDir, step: int, updates: int, about: Mapping[str, str] | None = None) -> Path:
    """A whole checkpoint of a step."""
    ledger = Ledger.load(run.ledger)
    directory = run.step(ledger.steps[step - 1]) / f"checkpoint-{updates}"
    directory.mkdir(parents=True)
    (directory / "model.bin").write_bytes(b"0123456789")
    seal(directory, {**about_checkpoint(run, ledger, ledger.steps[step - 1]), **(about or {})})
    return directory
