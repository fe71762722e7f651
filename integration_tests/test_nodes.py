"""Two machines, each with a launcher of its own and one rank, under ZeRO-3: with one output directory, and with two.

Here they are two processes on one machine, of real launchers where a run has to go on to its end, else in the
environment that those make. Where machines share no file system, each has a working directory of its own, in which the
config's relative paths lie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.env import ROOT, free_port
from integration_tests.harness.fresh import TOOLS, run_command
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

DEADLINE = 240.0
LAUNCHER = ROOT / "integration_tests" / "harness" / "cpu_launcher.py"
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0e-2, "num_epochs": 1}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}


@dataclass(frozen=True)
class Nodes:
    """Two working directories; the second is the first where the machines share a file system."""

    folders: tuple[Path, Path]
    host: Host

    def train(self, fault: str = "") -> list[Result]:
        """Train config.yaml with a rank in each, which nobody ends from outside."""
        env = {"SDPO_TEST_FAULT": fault or None}
        running = self.host.start_nodes(["train", "config.yaml", "--launcher", "python"], self.folders, env)
        both = running.wait(DEADLINE, grace=DEADLINE)
        codes = running.codes()
        return [
            replace(both, returncode=codes[pid], logs=(log,))
            for pid, log in zip(running.pids, running.logs, strict=True)
        ]

    def launch(self) -> list[Result]:
        """The same with a launcher in each."""
        port = free_port()

        def launch(node: int) -> Result:
            torchrun = [TOOLS / "torchrun", "--nnodes", "2", "--node_rank", node, "--nproc_per_node", "1"]
            address = ["--master_addr", "127.0.0.1", "--master_port", port]
            command = [*torchrun, *address, LAUNCHER, "train", "config.yaml"]
            return run_command([str(part) for part in command], self.folders[node], self.host.scratch, timeout=DEADLINE)

        return at_once(lambda: launch(0), lambda: launch(1))


@pytest.fixture(scope="module")
def config(model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """With an output directory and a cache that are relative to where the run is started."""
    folder = tmp_path_factory.mktemp("nodes")
    made = base_config(model, two_sets, folder, **SGD, **SAVING, micro_batch_size=2)
    made |= {
        "output_dir": "out",
        "dataset_prepared_path": "prepared",
        "deepspeed": str(write_zero3(folder / "ds.json")),
    }
    faults = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin"]
    return sdpo_config(made, plugins=faults, auto_resume_from_checkpoints=True)


@pytest.fixture(scope="module")
def alone(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    return run_sdpo(host, base_config(model, two_sets, tmp_path_factory.mktemp("alone"), **SGD, **SAVING))


def test_one_directory_is_resumed(host: Host, config: Config, alone: Path, tmp_path: Path) -> None:
    """A rank dies in step 2, behind a checkpoint of it; the same commands end with the models of one process."""
    write_config(tmp_path / "config.yaml", config)
    nodes = Nodes((tmp_path, tmp_path), host)
    for result in nodes.train("raise:2:7:0"):
        assert (result.returncode, result.timed_out) == (1, False)
    first, second = nodes.launch()
    assert "resuming step 2 from out/step-2/checkpoint-4" in first.check().log_text
    second.check()
    for step in ("step-1", "step-2", ""):
        assert apart(tmp_path / "out" / step, alone / step) <= 1e-6


def test_a_directory_each_trains_and_is_not_resumed(host: Host, config: Config, alone: Path, tmp_path: Path) -> None:
    """Models are written where rank 0 is. A run that died there is refused by name, on both, unless they are copied."""
    folders = (tmp_path / "0", tmp_path / "1")
    for folder in folders:
        write_config(folder / "config.yaml", config)
    nodes = Nodes(folders, host)
    for result in nodes.train("raise:2:7:0"):
        assert (result.returncode, result.timed_out) == (1, False)
    assert apart(folders[0] / "out" / "step-1", alone / "step-1") <= 1e-6
    assert not list(folders[1].glob("out/**/*.safetensors"))
    first, second = nodes.train()
    assert [(result.returncode, result.timed_out) for result in (first, second)] == [(1, False)] * 2
    (said,) = messages(first)
    assert said.startswith("rank 1 does not see out/step-2/checkpoint-4/")
    assert "the machines do not share output_dir: 'out'" in said


def test_a_directory_each_has_no_best_model(host: Host, config: Config, tmp_path: Path) -> None:
    """Every rank would load it, and the second machine has none: refused before anything is computed, also where an
    earlier run has left the same directories there."""
    folders = (tmp_path / "0", tmp_path / "1")
    (folders[1] / "out" / "step-1").mkdir(parents=True)
    best = {"val_set_size": 0.25, "save_steps": 2, "eval_steps": 2, "early_stopping_patience": 2}
    for folder in folders:
        write_config(folder / "config.yaml", config | best)
    results = Nodes(folders, host).train()
    assert [(result.returncode, result.timed_out) for result in results] == [(1, False)] * 2
    (said,) = messages(results[0])
    assert said.startswith("rank 1 does not see what rank 0 writes into out/sdpo, and every rank loads the best ")
    assert "the machines do not share output_dir: 'out'" in said
    assert "or remove load_best_model_at_end and early_stopping_patience" in said
    assert not list(folders[0].glob("out/step-*"))
    assert not list(folders[0].glob("out/sdpo/.*"))
