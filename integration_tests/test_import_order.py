"""The host replaces two functions of TRL by Triton kernels, and the trainer has to take them from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.fresh import run_command
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config

KERNELS = "axolotl.monkeypatch.trainer.utils"


@pytest.fixture(scope="module")
def seen(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two steps in a process of its own: the warm one has imported TRL's trainer long before."""
    folder = tmp_path_factory.mktemp("fresh")
    config = write_config(folder / "config.yaml", sdpo_config(base_config(model, two_sets, folder, max_steps=2)))
    command = [sys.executable, "-m", "integration_tests.harness.import_order", str(config), str(folder / "seen.json")]
    assert "Patched trl.trainer.utils with Triton" in run_command(command, folder, host.scratch).check().log_text
    return dict(json.loads((folder / "seen.json").read_text(encoding="utf-8")))


def test_no_trainer_before_the_host_has_patched(seen: dict[str, Any]) -> None:
    """Neither registration nor the data bring it in."""
    assert (seen["after register"], seen["before the host's patches"]) == ([], [])


def test_trainer_is_checked_before_weights_are_read(seen: dict[str, Any]) -> None:
    """An unsupported host is refused there, by name, and not after minutes of loading."""
    assert len(seen["before weights are read"]) == 3


def test_trainer_uses_what_the_host_says(seen: dict[str, Any]) -> None:
    """As a run of `rl: dpo` does; with TRL's own functions bound, the log would claim kernels that are not used."""
    assert seen["bound"] == {"selective_log_softmax": KERNELS, "entropy_from_logits": KERNELS}
    # Two reference passes of 6 and 8 batches, and 2 updates a step.
    assert seen["calls"] == 6 + 8 + 2 * 2
