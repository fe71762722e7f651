"""A config without `rl: sdpo` runs as if the plugin were not there, alone and after other configs in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.stored_weights import weights_digest

PLUGIN = {"plugins": ["sdpo_plugin.SDPOPlugin"]}
IN_TURN = "integration_tests.harness.two_configs:train_in_turn"
# What stands before a `rl: dpo` run in the same process, and how that ends.
BROKEN: dict[str, tuple[dict[str, Any], str | None]] = {
    "sdpo": ({}, None),
    "refused by the host": ({"seed": "many"}, "ValidationError"),
    "refused by us": ({"sdpo": {"refrence": "base"}}, "ConfigError"),
    "without data": ({"datasets": [{"path": "/nope", "type": "chatml.intel"}] * 2}, "DataError"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for what the host prepares, so that each set is prepared once."""
    return str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def plain_digest(
    host: Host, model: Path, two_sets: list[Config], prepared: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The weights of plain DPO by a host that knows nothing of the plugin."""
    folder = tmp_path_factory.mktemp("plain")
    config = base_config(model, two_sets, folder, dataset_prepared_path=prepared)
    host.train(write_config(folder / "config.yaml", config)).check()
    return weights_digest(folder / "out")


def test_plain_dpo_with_the_plugin_listed(
    host: Host, model: Path, two_sets: list[Config], prepared: str, plain_digest: str, tmp_path: Path
) -> None:
    """Bit-identical weights, and nothing of ours on disk or in the log."""
    config = base_config(model, two_sets, tmp_path, dataset_prepared_path=prepared, **PLUGIN)
    log = host.train(write_config(tmp_path / "config.yaml", config)).check().log_text
    assert weights_digest(tmp_path / "out") == plain_digest
    assert not (tmp_path / "out" / "sdpo").exists()
    assert "stepwise" not in log
    assert "log-probs of" not in log


@pytest.mark.parametrize(("before", "listed"), [("sdpo", True), *((before, False) for before in BROKEN)])
def test_plain_dpo_after_another_config(
    host: Host,
    model: Path,
    two_sets: list[Config],
    prepared: str,
    plain_digest: str,
    tmp_path: Path,
    before: str,
    listed: bool,
) -> None:
    """dpo → ours → dpo in one process: each dpo run loads its reference model and ends with the same bits.

    `listed`: whether the dpo configs list the plugin; then the host registers it anew for the last one.
    """
    overrides, error = BROKEN[before]

    def config(name: str) -> Config:
        return base_config(model, two_sets, tmp_path / name, dataset_prepared_path=prepared)

    plugin = PLUGIN if listed else {}
    runs = {
        "first": config("first") | plugin,
        "ours": sdpo_config(config("ours"), **overrides),
        "last": config("last") | plugin,
    }
    files = [write_config(tmp_path / name / "config.yaml", made) for name, made in runs.items()]
    first, ours, last = host.python(IN_TURN, *files)
    assert ours["error"] == error
    assert ours["loaded"] == (1 if error is None else 0)
    for outcome, name in ((first, "first"), (last, "last")):
        assert outcome["error"] is None
        assert outcome["loaded"] == 2
        assert weights_digest(tmp_path / name / "out") == plain_digest
    assert first["own"]
    # A run that died over its data leaves the patch, which lets every other config through, to the next `register`.
    assert ours["own"] or before == "without data"
    assert last["own"] == ours["own"]


def test_sdpo_is_the_same_after_another_config(
    host: Host, model: Path, two_sets: list[Config], prepared: str, tmp_path: Path
) -> None:
    """sdpo → dpo → sdpo in one process: both chains end with the same bits."""
    runs = {name: base_config(model, two_sets, tmp_path / name, dataset_prepared_path=prepared) for name in "abc"}
    runs["a"], runs["c"] = sdpo_config(runs["a"]), sdpo_config(runs["c"])
    files = [write_config(tmp_path / name / "config.yaml", made) for name, made in runs.items()]
    assert [outcome["error"] for outcome in host.python(IN_TURN, *files)] == [None] * 3
    for part in ("out", "out/step-1"):
        assert weights_digest(tmp_path / "a" / part) == weights_digest(tmp_path / "c" / part)
