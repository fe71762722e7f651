"""The README's first config is what a new user copies: the host takes it as it stands, and it trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration_tests.harness.env import ROOT
from integration_tests.harness.launch import Host
from integration_tests.harness.models import make_model
from sdpo_plugin.recognition import TRAINER_CLS

README = (ROOT / "README.md").read_text(encoding="utf-8")
COPIES = 8  # of the two rows that the README shows


def block(language: str) -> str:
    """The first block of code in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def config(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config in a folder where a tiny model and the README's rows stand under the names that it gives them."""
    folder = tmp_path_factory.mktemp("first")
    written: dict[str, Any] = yaml.safe_load(block("yaml"))
    make_model(host, folder / written["base_model"])
    for entry in written["datasets"]:
        (folder / entry["path"]).write_text(block("json") * COPIES, encoding="utf-8")
    (folder / "config.yaml").write_text(block("yaml"), encoding="utf-8")
    return folder / "config.yaml"


def test_host_takes_every_key(host: Host, config: Path) -> None:
    """Nothing that the config says vanishes silently, and the rows are read as they look."""
    written: dict[str, Any] = yaml.safe_load(block("yaml"))
    found = host.python("integration_tests.harness.example_configs:load", config, config.parent, 1)
    assert (found["rl"], found["trainer_cls"]) == ("dpo", TRAINER_CLS)
    assert set(written) <= set(found["known"])
    for said, kept in zip(written["datasets"], found["datasets"], strict=True):
        assert {key: kept.get(key) for key in said} == said
    answers = {json.loads(line)["chosen"]["content"] for line in block("json").splitlines()}
    for row in found["rows"]:
        assert row["prompt"].endswith("assistant\n")
        assert row["chosen"].partition("<|")[0] in answers


def test_it_trains(host: Host, config: Path) -> None:
    """Two steps on a CPU, and the files that the README promises."""
    host.train(config).check()
    out = config.parent / yaml.safe_load(block("yaml"))["output_dir"]
    for directory in (out, out / "step-1", out / "step-2"):
        assert (directory / "adapter_model.safetensors").exists()
    report = json.loads((out / "sdpo" / "report.json").read_text(encoding="utf-8"))
    assert report["finished"]
    assert [step["num_rows"] for step in report["steps"]] == [2 * COPIES - 1] * 2
    assert len(report["heldout"]["reference_free_accuracy"][-1]) == 2
