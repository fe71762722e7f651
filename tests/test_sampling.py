"""The rows on which every model of a run is compared, and the tables of them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.sampling import sample
from tests.dead_runs import resume
from tests.fakes import CALLS, D_1, D_2, DIAGNOSTICS, EXTERNAL, FakeHost, HostDiedError, make_plan, run


def step_of(num_rows: int, index: int = 1) -> StepPlan:
    first = make_plan().steps[0]
    return dataclasses.replace(first, index=index, num_rows=num_rows)


def compared(**changes: Any) -> Plan:
    """A plan of two steps, D_1 of three rows and D_2 of four, of which three are drawn."""
    return make_plan(diagnostics=DIAGNOSTICS, **changes)


# --- which rows ---


@pytest.mark.parametrize("num_rows", [1, 99, 100])
def test_all_rows_where_there_are_few(num_rows: int) -> None:
    drawn, step = sample(step_of(num_rows), 100, 42), step_of(num_rows)
    assert drawn.rows.tolist() == list(range(num_rows))
    assert drawn.digest == step.rows_digest


def test_some_rows_once_each_in_order_where_there_are_many() -> None:
    drawn = sample(step_of(1000), 100, 42)
    assert len(set(drawn.rows.tolist())) == 100
    assert drawn.rows.tolist() == sorted(drawn.rows.tolist())
    assert 0 <= drawn.rows.min() < 100 < 900 < drawn.rows.max() < 1000


def test_same_rows_in_every_process_and_others_with_another_seed_or_step() -> None:
    one, again = sample(step_of(1000), 100, 42), sample(step_of(1000), 100, 42)
    assert (one.digest, one.rows.tolist()) == (again.digest, again.rows.tolist())
    for other in (sample(step_of(1000), 100, 43), sample(step_of(1000, index=2), 100, 42)):
        assert other.digest != one.digest
        assert not np.array_equal(other.rows, one.rows)


# --- what is computed ---


def test_calls_of_a_run_with_diagnostics(run_dir: RunDir) -> None:
    """M_{t-1} has D_t already; what is left is looked at while each model is in memory."""
    host = FakeHost()
    run(host, run_dir, compared())
    samples = [call for call in host.calls if call.startswith("samples")]
    assert samples == [
        "samples of D_2 by M_0, called M_0",
        "samples of D_1 by M_1, called M_1",
        "samples of D_1, D_2 by M_2, called M_2",
    ]
    assert [call for call in host.calls if call not in samples] == CALLS
    after = {call: host.calls[index - 1] for index, call in enumerate(host.calls)}
    assert [after[call] for call in samples] == [f"held-out tables by M_{t}, called M_{t}" for t in (0, 1, 2)]


def test_nothing_is_computed_without_diagnostics(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir, make_plan())
    assert host.calls == CALLS
    assert not run_dir.sample("M_0", make_plan().steps[0]).parent.exists()


@pytest.mark.parametrize(
    ("reference", "early", "samples"),
    [
        # M_0 has the tables of both steps; every later model is looked at on both
        ("base", ["M_0"], ["D_1, D_2 by M_1, called M_1", "D_1, D_2 by M_2, called M_2"]),
        (EXTERNAL, [EXTERNAL], [f"D_1, D_2 by M_{t}, called M_{t}" for t in (0, 1, 2)]),
        ("previous", ["M_0"], ["D_1 by M_1, called M_1", "D_1, D_2 by M_2, called M_2"]),
    ],
    ids=["base", "external", "ordered"],
)
def test_what_earlier_passes_have_computed_is_not_computed_again(
    run_dir: RunDir, reference: str, early: list[str], samples: list[str]
) -> None:
    host = FakeHost(early=early)
    run(host, run_dir, compared(reference=reference))
    assert [call for call in host.calls if call.startswith("samples")] == [f"samples of {call}" for call in samples]


def test_matrix_is_whole_and_a_column_is_of_the_same_rows(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir, compared())
    rows = sample(compared().steps[1], **DIAGNOSTICS).rows
    drawn = np.array(D_2)[rows]
    report = build_report(run_dir)
    # γ = 2θx with θ = −1, 1, 3; D_1 = 1, 2, 3 has mean 2
    means = np.outer([-2.0, 2.0, 6.0], [np.mean(D_1), drawn.mean()])
    assert np.array(report["train"]["gamma"]) == pytest.approx(means, abs=1e-6)
    assert (report["train"]["num_rows"], report["train"]["of_rows"]) == ([3, 3], [3, 4])
    assert report["steps"][1]["gamma_ref"]["mean"] == 4.0  # of all four rows: 2 · 8/4
    # against M_0: γ − γ_0 = 2(θ + 1)x
    assert report["train"]["implicit_reward_accuracy"] == [
        [None, None],
        [1.0, (drawn > 0).mean()],
        [1.0, (drawn > 0).mean()],
    ]
    assert [(change["step"], change["set"]) for change in report["changes"] if change["kind"] == "train"] == [
        (1, "step-1"),
        (1, "step-2"),
        (2, "step-1"),
        (2, "step-2"),
    ]


@pytest.mark.parametrize("call", ["samples of D_2 by M_0, called M_0", "samples of D_1 by M_1, called M_1"])
def test_dead_in_a_sample_and_resumed_is_the_run_that_was_not(run_dir: RunDir, tmp_path: Path, call: str) -> None:
    with pytest.raises(HostDiedError, match=re.escape(call)):
        run(FakeHost(dies_in=call), run_dir, compared())
    resume(run_dir, FakeHost(), compared())
    whole = RunDir(tmp_path / "whole")
    run(FakeHost(), whole, compared())
    assert build_report(run_dir)["train"] == build_report(whole)["train"]


def test_diagnostics_that_are_switched_on_later_tell_of_what_is_left(run_dir: RunDir) -> None:
    with pytest.raises(HostDiedError):
        run(FakeHost(dies_in="train M_1 on D_2"), run_dir, make_plan())
    host = FakeHost()
    resume(run_dir, host, compared())
    assert [call for call in host.calls if call.startswith("samples")] == ["samples of D_1, D_2 by M_2, called M_2"]
    gamma = build_report(run_dir)["train"]["gamma"]
    assert [[cell is not None for cell in row] for row in gamma] == [[True, False], [False, True], [True, True]]


def test_other_rows_drawn_later_leave_the_cells_of_the_first_ones_empty(run_dir: RunDir) -> None:
    host = FakeHost(dies_in="train M_1 on D_2")
    host.diagnostics = {"max_rows": 2, "seed": 42}
    with pytest.raises(HostDiedError):
        run(host, run_dir, make_plan(diagnostics=host.diagnostics))
    resume(run_dir, FakeHost(), compared())
    report = build_report(run_dir)
    assert [[cell is not None for cell in row] for row in report["train"]["gamma"]] == [
        [True, False],  # D_1 has three rows, of which two were drawn; its reference table has all
        [False, True],
        [True, True],
    ]
    assert [warning.split(" ")[0] for warning in report["warnings"]] == [
        "sdpo/samples/M_1-step-1.safetensors",
        "sdpo/samples/M_0-step-2.safetensors",
    ]


def test_seconds_of_the_last_step_are_those_before_and_after_it(run_dir: RunDir) -> None:
    ledger = run(FakeHost(), run_dir, compared())
    assert all(record.diagnostics_seconds is not None and record.diagnostics_seconds > 0 for record in ledger.records)
