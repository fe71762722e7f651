"""What a run imports and starts: the trainer when the host has replaced two functions of TRL by Triton kernels, and
nothing for nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.fresh import run_command
from integration_tests.harness.launch import Host
from integration_tests.harness.one_word import release
from integration_tests.harness.sdpo import sdpo_config

KERNELS = "axolotl.monkeypatch.trainer.utils"


@pytest.fixture(scope="module")
def seen(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two steps in a process of its own: the warm one has imported TRL's trainer long before."""
    folder = tmp_path_factory.mktemp("fresh")
    made = sdpo_config(base_config(model, two_sets, folder, max_steps=2, dataset_num_proc=None))
    config = write_config(folder / "config.yaml", made)
    command = [sys.executable, "-m", "integration_tests.harness.import_order", str(config), str(folder / "seen.json")]
    log = run_command(command, folder, host.scratch).check().log_text
    return {**json.loads((folder / "seen.json").read_text(encoding="utf-8")), "log": log}


def test_no_trainer_before_the_host_has_patched(seen: dict[str, Any]) -> None:
    """Neither registration nor the data bring it in."""
    assert (seen["after register"], seen["before the host's patches"]) == ([], [])


def test_trainer_is_checked_before_weights_are_read(seen: dict[str, Any]) -> None:
    """An unsupported host is refused there, by name, and not after minutes of loading."""
    assert len(seen["before weights are read"]) == 3


def test_trainer_uses_what_the_host_says(seen: dict[str, Any]) -> None:
    """As a run of `rl: dpo` does; with TRL's own functions bound, the log would claim kernels that are not used."""
    replaced = "Patched trl.trainer.utils with Triton" in seen["log"]
    assert replaced == (release() < (0, 21))  # Axolotl 0.21 leaves TRL's functions as they are
    assert "selective_log_softmax" in seen["bound"]  # TRL 1.14 takes the entropies from another module
    assert set(seen["bound"].values()) == {KERNELS if replaced else "__main__"}
    # Five batches to try packed rows with (a few tokens, packed and padded; two padded pairs, both packed), two
    # reference passes of 5 and 7, 2 updates a step, and for the report D_2 under M_0, D_1 under M_1, both under M_2.
    assert seen["calls"] == 5 + 5 + 7 + 2 * 2 + 7 + 5 + 5 + 7


def test_nothing_is_imported_for_an_answer_that_is_known(seen: dict[str, Any]) -> None:
    """TRL's model card asks Trackio for an address, also where no run logs to it."""
    assert seen["for nothing"] == []


def test_garbage_collections_pass_over_imports_until_training_is_done(seen: dict[str, Any]) -> None:
    """Some million objects; at the end Python collects them, or extension modules would complain of leaks."""
    at_its_start, while_it_trains, at_its_end = seen["frozen"]
    assert while_it_trains > 100_000
    assert at_its_end == at_its_start
    assert "leaked" not in seen["log"]


def test_few_rows_start_no_process(seen: dict[str, Any]) -> None:
    """Neither to map nor to write; `datasets` says the number of processes in every progress bar that has some."""
    assert "Saving the dataset" in seen["log"]
    assert "num_proc=" not in seen["log"]


def test_a_number_of_processes_that_is_asked_for_is_used(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """By the host's maps and by TRL's."""
    config = sdpo_config(base_config(model, two_sets, tmp_path, max_steps=1, dataset_num_proc=2))
    log = host.train(write_config(tmp_path / "config.yaml", config)).check().log_text
    assert "Tokenizing source 1 dataset (num_proc=2)" in log
    assert "(num_proc=2)" in log.partition("stepwise DPO (sDPO)")[0]
