"""Every mutated config is valid, or refused by a message that names the key: no traceback from inside the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from integration_tests.harness.data import Config, base_config
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config

FUZZ = "integration_tests.harness.fuzz:fuzz"
EXAMPLES = 1500  # of which a third repeats another one


def good_configs(model: Path, two_sets: list[Config], folder: Path) -> list[Config]:
    """A valid config of each shape: a pool of sources, steps of its own, and pools that are cut."""
    plain = base_config(model, two_sets, folder)
    first, second = two_sets
    steps: list[dict[str, Any]] = [
        {"name": "orca", "datasets": [first], "learning_rate": 1.0e-3, "warmup_steps": 2},
        {"datasets": [second, first], "dpo_loss_type": ["ipo"], "rl_beta": 0.2},
    ]
    return [
        sdpo_config(plain, sdpo={}),
        sdpo_config(plain, sdpo={"steps": steps, "reference": "base"}, datasets=None),
        sdpo_config(plain, sdpo={"partition": {"strategy": "random", "num_steps": 2, "seed": 1}}),
        sdpo_config(plain, sdpo={"partition": {"strategy": "easy_to_hard", "unit": "row", "fractions": [0.5, 0.5]}}),
    ]


def test_every_mutated_config_is_valid_or_refused(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """A thousand configs; each class is large enough to mean something."""
    counts = host.python(FUZZ, good_configs(model, two_sets, tmp_path), EXAMPLES)
    print(counts)
    assert counts["failure"] is None, counts["failure"]
    assert counts["distinct"] >= 500
    assert counts["valid"] >= 50
    assert counts["ours"] >= 100
    assert counts["host"] >= 50
