"""What a step sets for itself holds, also where the host would rather take what the run has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.host_runs import run_chain
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config

# The host takes `trl.beta` before `rl_beta`, and passes a smoothing of 0 over.
RUN = {"trl": {"beta": 0.05}, "dpo_label_smoothing": 0.1, "dpo_loss_type": ["robust"], "optimizer": "sgd"}
ROWS = "32 rows with digest [0-9a-f]{12}…"
SECOND = {"rl_beta": 0.3, "dpo_label_smoothing": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs."""
    return tmp_path_factory.mktemp("overrides")


@pytest.fixture(scope="module")
def made(model: Path, two_sets: list[Config], folder: Path) -> Config:
    """Two steps; the second one has a held-out set of its own, which does not say how it is read."""
    first, second = two_sets
    silent = {key: second[key] for key in ("path", "ds_type", "split")}
    steps = [{"datasets": [first]}, {"datasets": [second], **SECOND, "test_datasets": [silent]}]
    config = base_config(model, [], folder, **RUN, learning_rate=1.0e-2)
    return sdpo_config(config, datasets=None, sdpo={"steps": steps})


@pytest.fixture(scope="module")
def out(host: Host, made: Config) -> Path:
    """The run."""
    return run_sdpo(host, made)


def test_equals_separate_runs(
    host: Host, model: Path, two_sets: list[Config], folder: Path, made: Config, out: Path
) -> None:
    config = base_config(model, two_sets, folder, **RUN, learning_rate=1.0e-2)
    by_hand, unheard = at_once(
        lambda: run_chain(host, config, two_sets, folder / "by-hand", [{}, {**SECOND, "trl": None}]),
        lambda: run_chain(host, config, two_sets, folder / "unheard"),
    )
    assert apart(out, by_hand[1]) <= 1e-6
    assert apart(out, unheard[1]) > 1e-5  # what it would be with the run's own β and smoothing


def test_held_out_rows_are_read_as_the_rows_of_their_step(two_sets: list[Config], out: Path) -> None:
    """D_1 is messages for a chat template, D_2 three texts."""
    assert two_sets[0]["type"] != two_sets[1]["type"]
    assert read_report(out)["heldout"]["sets"] == ["d2"]
    plan = json.loads((out / "sdpo" / "plan.json").read_text(encoding="utf-8"))
    assert [step["num_heldout"] for step in plan["steps"]] == [0, 32]


def test_table_is_not_read_under_another_length(host: Host, made: Config, out: Path) -> None:
    """No row is longer than 110 tokens, so that rows and their digest are the same."""
    first, second = made["sdpo"]["steps"]
    longer = {"steps": [first, {**second, "sequence_len": 110}]}
    config = {**made, "sdpo": longer, "auto_resume_from_checkpoints": True}
    result = host.train(write_config(out.parent / "longer.yaml", config))
    assert result.returncode != 0
    said = rf"  rows: source 2 \(.*d2.jsonl:train\) is {ROWS}, sequence_len: 110, and it was {ROWS}\n"
    assert re.search(said, result.log_text)
