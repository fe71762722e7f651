"""`load_best_model_at_end` and `early_stopping_patience` hold for each step by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.deaths import live
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.sdpo import read_report, sdpo_config
from integration_tests.harness.stored_weights import weights_digest
from integration_tests.harness.zero3 import write_zero3

PATIENCE = 2
# Fast enough that the held-out loss soon rises.
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "learning_rate": 0.3}
STOPPING = {
    "early_stopping_patience": PATIENCE,
    "val_set_size": 0.25,
    "num_epochs": 6,
    "eval_steps": 1,
    "save_steps": 1,
    "save_strategy": None,
    "learning_rate": 2.0e-2,
}
SAVED_LESS_OFTEN = {"save_steps": 3}


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for what the host prepares, so that each set is prepared once."""
    return {"dataset_prepared_path": str(tmp_path_factory.mktemp("prepared"))}


@pytest.mark.parametrize("kind", ["full", "lora", "zero3"])
def test_each_step_stops_early_and_keeps_its_best(
    host: Host, model: Path, two_sets: list[Config], cache: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """Each step trains for `patience` evaluations after its best one, and M_t is that best checkpoint."""
    extra: dict[str, Any] = {"full": {}, "lora": LORA}.get(kind, {})
    if kind == "zero3":
        extra = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2}
    config = sdpo_config(base_config(model, two_sets, tmp_path, **STOPPING | extra | cache))
    ranks = 2 if kind == "zero3" else 1
    host.train(write_config(tmp_path / "config.yaml", config), ranks=ranks).check()
    out = tmp_path / "out"
    for step in read_report(out)["steps"]:
        folder, updates = out / step["name"], step["num_optimizer_steps"]
        state = json.loads((folder / f"checkpoint-{updates}" / "trainer_state.json").read_text())
        best = Path(state["best_model_checkpoint"])
        assert best.parent == folder
        assert updates == _number(best) + PATIENCE
        assert updates < state["max_steps"]
        assert best.name != f"checkpoint-{updates}"
        assert step["first_loss"] == pytest.approx(0.6931, abs=1e-3)
        if kind != "zero3":  # there a checkpoint holds shards
            assert weights_digest(folder) == weights_digest(best)
    assert weights_digest(out) == weights_digest(out / "step-2")
    assert weights_digest(out) != weights_digest(out / "step-1")


@pytest.mark.parametrize("overrides", [{}, SAVED_LESS_OFTEN], ids=["each", "every third"])
def test_a_run_that_is_moved_keeps_its_best(
    host: Host,
    model: Path,
    two_sets: list[Config],
    cache: dict[str, str],
    tmp_path: Path,
    overrides: dict[str, Any],
) -> None:
    """Killed when its last checkpoint is there and M_1 is not, and moved as a whole: Axolotl 0.21 looks for the best
    checkpoint where it was. With fewer checkpoints than evaluations the best one is not that of the best evaluation."""
    life = live(host, base_config(model, two_sets, tmp_path / "whole", **STOPPING | overrides | cache))
    last = max(_number(path) for path in (life.out / "step-1").glob("checkpoint-*"))
    state = json.loads((life.out / "step-1" / f"checkpoint-{last}" / "trainer_state.json").read_text())
    assert (_number(Path(state["best_model_checkpoint"])) == state["best_global_step"]) == (not overrides)
    assert weights_digest(life.out / "step-1") != weights_digest(life.out / "step-1" / f"checkpoint-{last}")
    saved = max(number for number, event in enumerate(life.events) if f"step-1/checkpoint-{last}" in event)
    exporting = next(number for number, event in enumerate(life.events) if number > saved and "sdpo/staging" in event)
    dead = life.die(tmp_path / "dead", exporting + 1)  # events are counted from 1
    assert (dead.parent / "out" / "step-1" / f"checkpoint-{last}").is_dir()
    moved = tmp_path / "moved"
    dead.parent.rename(moved)
    made = {**yaml.safe_load((moved / "config.yaml").read_text(encoding="utf-8")), "output_dir": str(moved / "out")}
    assert weights_digest(life.resume(write_config(moved / "config.yaml", made))) == weights_digest(life.out)
    assert weights_digest(moved / "out" / "step-1") == weights_digest(life.out / "step-1")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"load_best_model_at_end": True}, ("load_best_model_at_end: True needs held-out rows", "step-1, step-2")),
        (
            {
                **STOPPING,
                "early_stopping_patience": None,
                "load_best_model_at_end": True,
                "save_steps": 3,
                "eval_steps": 2,
            },
            ("load_best_model_at_end: True needs a checkpoint", "save_steps is 3", "eval_steps 2"),
        ),
    ],
    ids=["no held-out rows", "no checkpoint where it evaluates"],
)
def test_settings_that_cannot_be_met_are_refused(
    host: Host,
    model: Path,
    two_sets: list[Config],
    cache: dict[str, str],
    tmp_path: Path,
    overrides: dict[str, Any],
    parts: tuple[str, ...],
) -> None:
    """Under `rl: dpo` the host trains and ignores them."""
    config = sdpo_config(base_config(model, two_sets, tmp_path, **overrides | cache))
    refused(host.train(write_config(tmp_path / "config.yaml", config)), tmp_path / "out", *parts)
