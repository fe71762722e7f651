"""Each step trains under the arguments, schedule and evaluations that a separate host run of that step would have."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from integration_tests.harness.compare import Compared, apart, compare
from integration_tests.harness.data import Config, base_config, even_set, write_config
from integration_tests.harness.env import ROOT
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.sdpo import PADDED, read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3
from sdpo_plugin.steps_args import OVERRIDES

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0e-2}
HAS_LD_ALPHA = Version(version("axolotl")) >= Version("0.21.dev0")
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
    {
        "learning_rate": 2.0e-2,
        "num_epochs": 2,
        "rl_beta": 0.2,
        "dpo_loss_type": ["sigmoid", "hinge"],
        "dpo_loss_weights": [1.0, 0.5],
        "dpo_label_smoothing": 0.1,
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 1,
    },
    {
        "num_epochs": 3,
        "lr_scheduler": "linear",
        "warmup_ratio": None,
        "warmup_steps": 4,
        "weight_decay": 0.05,
        "rl_beta": 0.3,
        "dpo_loss_type": ["ipo"],
        "gradient_accumulation_steps": 4,
        "sequence_len": 57,  # 8 of 32 rows are longer
        **({"dpo_ld_alpha": 0.3} if HAS_LD_ALPHA else {}),
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


def test_everything_equals_separate_runs(model: Path, everything: Compared) -> None:
    """Accumulation, held-out rows, evaluation, warm-up, schedules, and steps with settings of their own."""
    # Measured: M_1 and M_2 1.2e-7, where the weights moved by 3.1e-3 and by another 5.1e-3.
    for mine, by_hand in zip(everything.steps, everything.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
    assert apart(model, everything.steps[0]) > 1e-3
    assert apart(everything.steps[0], everything.out) > 1e-3


def test_the_hosts_own_optimizers_take_a_steps_learning_rate(host: Host, model: Path, tmp_path: Path) -> None:
    """They read nothing of a step's arguments: the host makes them with those of the run. Rows of one length."""
    sets = [even_set(tmp_path / f"d{n}.jsonl", rows, n) for n, rows in ((1, 24), (2, 20))]
    own = {"optimizer": "adopt_adamw", "learning_rate": 1.0e-3, "num_epochs": 1, "sdpo": PADDED}
    steps = [{"learning_rate": 4.0e-3}, {"weight_decay": 0.3}]
    config = base_config(model, sets, tmp_path, **own)
    run = compare(host, config, sets, steps)
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) == 0.0
    assert apart(model, run.steps[0]) > 1e-3


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
    """A quarter of 24 and of the 24 short ones of 32 rows; what the cells hold is compared in test_heldout.py."""
    report, plan = read_report(everything.out), read_json(everything.out / "sdpo" / "plan.json")
    assert [(step["num_rows"], step["num_heldout"]) for step in plan["steps"]] == [(18, 6), (18, 6)]
    assert [step["num_dropped"] for step in plan["steps"]] == [2, 8]
    # 2 epochs of 18 rows, 3 at a time; 3 epochs of 18, 2 × 4 at a time: 6.75, rounded up as the host does.
    assert [step["num_optimizer_steps"] for step in plan["steps"]] == [12, 7]
    assert report["heldout"]["sets"] == ["step-1", "step-2"]
    for matrix in (report["heldout"]["gamma"], report["heldout"]["reference_free_accuracy"]):
        assert [len(row) for row in matrix] == [2, 2, 2]
        assert all(isinstance(value, float) for row in matrix for value in row)


def test_max_steps(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """`max_steps` bounds every step, beyond an epoch too; a step that sets `num_epochs` means that instead."""
    config = base_config(model, two_sets, tmp_path, **SGD, max_steps=9)
    run = compare(host, config, two_sets, [{}, {"num_epochs": 2, "max_steps": None}])
    assert [step["num_optimizer_steps"] for step in read_report(run.out)["steps"]] == [9, 16]
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6  # measured: 6.0e-8 in both
    assert apart(run.steps[0], run.out) > 1e-3


def test_answers_are_cut_at_the_length_of_the_step(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """The host cuts the texts of 8 of 32 rows to the 57 tokens of step 2, TRL adds EOS to them, and cuts it off again:
    in the reference pass as in training."""
    config = base_config(model, two_sets, tmp_path, **SGD, excess_length_strategy="truncate")
    run = compare(host, config, two_sets, [{}, {"sequence_len": 57}])
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
    checks = read_report(run.out)["data_checks"]["sources"]
    assert [(source["num_rows"], source["num_dropped"]) for source in checks] == [(26, 0), (32, 0)]


@pytest.mark.parametrize("zero3", [False, True], ids=["whole", "zero3"])
def test_batches_of_a_step_on_two_ranks(
    host: Host, one_process: Path, model: Path, two_sets: list[Config], tmp_path: Path, zero3: bool
) -> None:
    """Half as many pairs on each of two ranks are the same updates; DeepSpeed counts them in an engine of each step."""
    zero = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "save_strategy": "epoch"}
    sharded = zero if zero3 else {}
    out = run_sdpo(host, own_batches(model, two_sets, tmp_path, [(1, 2), (2, 1)], **sharded), ranks=2)
    # 24 and 32 rows, 4 at a time; by the config's own batch of 2 × 3 × 4 it would be 1 and 2.
    assert [step["num_optimizer_steps"] for step in read_report(out)["steps"]] == [6, 8]
    for name in ("step-1", "step-2"):
        assert apart(out / name, one_process / name) <= 1e-6
    if zero3:  # an engine with the config's own batch of 24 ends with the same weights, and counts 144 and 192
        ends = [out / "step-1" / "checkpoint-6", out / "step-2" / "checkpoint-8"]
        counted = [host.python("integration_tests.harness.probes:pairs_by_deepspeed", end) for end in ends]
        assert counted == [24, 32]


@pytest.fixture(scope="module")
def one_process(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose steps have batches of their own, in one process."""
    return run_sdpo(host, own_batches(model, two_sets, tmp_path_factory.mktemp("one"), [(2, 2), (4, 1)]))


def own_batches(
    model: Path, sets: list[Config], folder: Path, batches: list[tuple[int, int]], **settings: Any
) -> Config:
    """A config of steps with so many pairs a batch, and batches an update; the config's own are 3 × 4."""
    steps = [
        {"datasets": [entry], "micro_batch_size": micro, "gradient_accumulation_steps": accumulated}
        for entry, (micro, accumulated) in zip(sets, batches, strict=True)
    ]
    own = {"micro_batch_size": 3, "gradient_accumulation_steps": 4, "optimizer": "sgd", "learning_rate": 1.0e-2}
    return sdpo_config(base_config(model, [], folder, **own, **settings), datasets=None, sdpo={"steps": steps})


@pytest.mark.parametrize(
    ("step", "deepspeed", "said"),
    [
        pytest.param({"sequence_len": 129}, {}, ("sequence_len: 129", "sequence_len: 128 of the"), id="longer"),
        pytest.param(
            {"micro_batch_size": 2},
            {"train_batch_size": 24},  # 3 × 4 × 2 ranks, as the config and step 1 have it
            ("micro_batch_size: 2, which makes train_batch_size 16", "has train_batch_size: 24 for all", '"auto"'),
            id="deepspeed",
        ),
    ],
)
def test_what_a_step_cannot_have(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, step: Config, deepspeed: Config, said: Any
) -> None:
    """Rows longer than the model is loaded for; a batch other than the one that the DeepSpeed config says."""
    config = own_batches(model, two_sets, tmp_path, [(3, 4), (3, 4)])
    config["sdpo"]["steps"][1] = {"name": "last", "datasets": [two_sets[1]], **step}
    if deepspeed:
        config["deepspeed"] = str(write_zero3(tmp_path / "zero3.json", deepspeed))
    result = host.train(write_config(tmp_path / "config.yaml", config), ranks=2 if deepspeed else 1)
    refused(result, tmp_path / "out", "step last", *said)


def test_iterative_rpo(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """The recipe over the test's data and model, with SGD: a chain of host runs with its losses and batches."""
    recipe = yaml.safe_load((ROOT / "example_configs" / "iterative-rpo.yaml").read_text(encoding="utf-8"))
    steps = [{key: value for key, value in step.items() if key in OVERRIDES} for step in recipe["sdpo"]["steps"]]
    batches = {"micro_batch_size": 1, "gradient_accumulation_steps": 32}
    assert steps == [batches, {"dpo_loss_weights": [1.0, 0.5]}]
    own = ("dpo_loss_type", "dpo_loss_weights", "rl_beta", "micro_batch_size", "gradient_accumulation_steps")
    losses = {key: recipe[key] for key in own}
    config = base_config(model, two_sets, tmp_path, **losses, optimizer="sgd", learning_rate=1.0e-2, num_epochs=10)
    run = compare(host, config, two_sets, steps)
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
    report = read_report(run.out)
    # 10 epochs of 24 and of 32 rows, 32 at a time: 7.5, rounded up, and 10.
    assert [step["num_optimizer_steps"] for step in report["steps"]] == [8, 10]
    # ln 2, and on top the likelihood of a model that knows nothing of its 384 tokens (ln 384 = 5.95, and more as it
    # was drawn; measured: 6.67), which counts half in step 2.
    likelihood = [step["first_loss"] - math.log(2) for step in report["steps"]]
    assert 5.95 < likelihood[0] < 7.5
    assert 5.95 / 2 < likelihood[1] < 7.5 / 2
