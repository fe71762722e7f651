"""Ranks see one file system, and one of them may see it late: no rank takes away what another still looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, lora_config, write_config
from integration_tests.harness.deaths import PLUGINS, outcome, train
from integration_tests.harness.fsdp2 import LARGE, fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3

SAVES = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "micro_batch_size": 2}
BEST = {"val_set_size": 0.25, "eval_steps": 1, "load_best_model_at_end": True}
LAST = {"export_steps": "last"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for what the host prepares."""
    return {"dataset_prepared_path": str(tmp_path_factory.mktemp("prepared"))}


@pytest.mark.parametrize("kind", ["ddp", "no checkpoints", "lora and zero-3", "fsdp2"])
def test_a_late_rank_changes_nothing(
    host: Host, model: Path, two_sets: list[Config], cache: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """Each of two ranks once takes longer over every file than the other one over whole steps."""
    make: Any = lora_config if kind == "lora and zero-3" else base_config
    extra: dict[str, Any] = {
        "ddp": lambda: {**SAVES, **BEST, "sdpo": LAST},
        "no checkpoints": lambda: {"sdpo": LAST, "micro_batch_size": 2},
        "lora and zero-3": lambda: {**SAVES, "deepspeed": str(write_zero3(tmp_path / "zero3.json"))},
        "fsdp2": lambda: {**SAVES, **fsdp2(**LARGE)},
    }[kind]()
    outcomes = []
    for name, fault in (("late-0", "lag:0:0.003"), ("late-1", "lag:1:0.02")):
        made = sdpo_config(make(model, two_sets, tmp_path / name, **extra | cache), plugins=PLUGINS)
        train(host, write_config(tmp_path / name / "config.yaml", made), fault, ranks=2).check()
        outcomes.append(outcome(host, Path(made["output_dir"])))
    assert outcomes[1] == outcomes[0]
