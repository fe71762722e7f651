"""Full fine-tuning holds one model: the policy is the reference. The host holds two."""

from __future__ import annotations

from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, chat_set, intel_set, write_config
from integration_tests.harness.launch import Host
from integration_tests.harness.models import make_model
from integration_tests.harness.sdpo import sdpo_config

MEASURE = "integration_tests.harness.memory:train_and_measure"
SIZE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 7, "num_attention_heads": 8}
FLOAT32 = 4
UPDATES = 2  # a step


@pytest.fixture(scope="module")
def measured(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same two sets through the host's DPO and through ours, with a model large enough to weigh."""
    folder = tmp_path_factory.mktemp("large")
    large = make_model(host, folder / "model", **SIZE)
    sets = [chat_set(folder / "d1.jsonl", 2 * UPDATES, 1), intel_set(folder / "d2.jsonl", 2 * UPDATES, 2)]

    def config(name: str) -> Config:
        return base_config(large, sets, folder / name, micro_batch_size=2, dataset_prepared_path=str(folder / "cache"))

    plain = write_config(folder / "dpo" / "config.yaml", config("dpo"))
    ours = write_config(folder / "sdpo" / "config.yaml", sdpo_config(config("sdpo")))
    for file in (plain, ours):  # what it takes to read and prepare rows is no part of what is compared
        host.run(["preprocess", str(file)], file.parent).check()
    values = host.python("integration_tests.harness.probes:summary", large)["values"]
    return {"weights": values * FLOAT32, "dpo": host.python(MEASURE, plain), "sdpo": host.python(MEASURE, ours)}


def test_one_load_and_one_model(measured: dict[str, Any]) -> None:
    """Counted at the loader and after every update, beside the host's two."""
    assert (measured["dpo"]["loads"], measured["dpo"]["live"]) == (2, [2] * 2 * UPDATES)
    assert (measured["sdpo"]["loads"], measured["sdpo"]["live"]) == (1, [1] * 2 * UPDATES)


def test_peak_memory_is_smaller_by_a_model(measured: dict[str, Any], record_property: Any) -> None:
    """The second model's weights are what is saved; 0.6 of them leaves room for what else an allocator keeps."""
    megabytes = {
        "weights": measured["weights"] / 2**20,
        "peak above start, rl: dpo": (measured["dpo"]["peak"] - measured["dpo"]["start"]) / 2**20,
        "peak above start, rl: sdpo": (measured["sdpo"]["peak"] - measured["sdpo"]["start"]) / 2**20,
    }
    line = ", ".join(f"{name} {value:.0f} MiB" for name, value in megabytes.items())
    record_property("memory", line)
    print(line)
    assert measured["dpo"]["peak"] - measured["sdpo"]["peak"] > 0.6 * measured["weights"], line
