"""Each step trains under the arguments, schedule and evaluations that a separate host run of that step would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import Compared, apart, compare
from integration_tests.harness.data import Config, base_config
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report

# Rows held out, a last batch that is not full (18 rows: 4.5 updates an epoch), and all that a step may set.
EVERYTHING: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 1.0e-2,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "val_set_size": 0.25,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "lr_scheduler": "cosine",
    "warmup_steps": None,
    "warmup_ratio": 0.3,
    "accelerator_config": {"use_seedable_sampler": False},  # rows are shuffled by the process's random numbers
}
STEPS: list[dict[str, Any]] = [
    {"learning_rate": 2.0e-2, "num_epochs": 2, "rl_beta": 0.2, "dpo_label_smoothing": 0.1},
    {
        "num_epochs": 3,
        "lr_scheduler": "linear",
        "warmup_ratio": None,
        "warmup_steps": 4,
        "weight_decay": 0.05,
        "rl_beta": 0.3,
        "dpo_loss_type": ["ipo"],
    },
]


@pytest.fixture(scope="module")
def everything(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Two steps that differ in all they may differ in."""
    config = base_config(model, two_sets, tmp_path_factory.mktemp("everything"), **EVERYTHING)
    return compare(host, config, two_sets, STEPS)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The values that the host's trainer logged up to each checkpoint of a run or a step."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return {path.name: read_json(path / "trainer_state.json")["log_history"] for path in found}


def test_everything_equals_separate_runs(host: Host, model: Path, everything: Compared) -> None:
    """Accumulation, held-out rows, evaluation, warm-up, schedules, and steps with settings of their own."""
    # Measured: M_1 and M_2 1.2e-7, where the weights moved by 3.1e-3 and by another 5.1e-3.
    for mine, by_hand in zip(everything.steps, everything.chain, strict=True):
        assert apart(host, mine, by_hand) <= 1e-6
    assert apart(host, model, everything.steps[0]) > 1e-3
    assert apart(host, everything.steps[0], everything.out) > 1e-3


@pytest.mark.parametrize("number", [0, 1])
def test_schedule_and_losses_are_those_of_the_separate_run(everything: Compared, number: int) -> None:
    """The same checkpoints; in each the same learning rates to the bit, and the same losses, trained and held out."""
    mine, by_hand = histories(everything.steps[number]), histories(everything.chain[number])
    assert mine
    assert mine.keys() == by_hand.keys()
    for checkpoint, logged in mine.items():
        for key in ("learning_rate", "epoch", "step"):
            assert [row.get(key) for row in logged] == [row.get(key) for row in by_hand[checkpoint]], key
        for key in ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins"):
            ours, theirs = ([row[key] for row in side if key in row] for side in (logged, by_hand[checkpoint]))
            assert ours
            # Measured: 4e-6 at most, in losses of 0.5 to 2.8: the rounding of the references times β, doubled by ipo.
            # Not accuracies: they are the sign of that rounding where margins are 0, as in `eval_on_start`.
            assert ours == pytest.approx(theirs, abs=5e-5), key
    rates = [row["learning_rate"] for row in list(mine.values())[-1] if "learning_rate" in row]
    assert max(rates) == pytest.approx([2.0e-2, 1.0e-2][number])
    assert rates[0] == 0.0


def test_every_model_is_evaluated_on_the_held_out_rows_of_each_step(everything: Compared) -> None:
    """A quarter of 24 and of 32 rows; what the cells hold is compared in test_heldout.py."""
    report, plan = read_report(everything.out), read_json(everything.out / "sdpo" / "plan.json")
    assert [(step["num_rows"], step["num_heldout"]) for step in plan["steps"]] == [(18, 6), (24, 8)]
    assert report["heldout"]["sets"] == ["step-1", "step-2"]
    for matrix in (report["heldout"]["gamma"], report["heldout"]["reference_free_accuracy"]):
        assert [len(row) for row in matrix] == [2, 2, 2]
        assert all(isinstance(value, float) for row in matrix for value in row)


def test_max_steps(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """`max_steps` bounds every step, beyond an epoch too; a step that sets `num_epochs` means that instead."""
    config = base_config(model, two_sets, tmp_path, optimizer="sgd", learning_rate=1.0e-2, max_steps=9)
    run = compare(host, config, two_sets, [{}, {"num_epochs": 2, "max_steps": None}])
    assert [step["num_optimizer_steps"] for step in read_report(run.out)["steps"]] == [9, 16]
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(host, mine, by_hand) <= 1e-6  # measured: 6.0e-8 in both
    assert apart(host, run.steps[0], run.out) > 1e-3
