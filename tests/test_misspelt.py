"""Names that are nearly right: those that are refused, the messages, and those that are left to the host."""

from collections.abc import Mapping
from typing import Any

import pytest

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.misspelt import OWNERS, require_known_keys, require_known_rl
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.plugin_name import is_listed, require_plugin_name

HOST = {"rl", "datasets", "seed", "plugins", "learning_rate", "sdpo"}
KINDS = ["dpo", "ipo", "kto", "orpo", "simpo"]


def refusal(cfg: Mapping[Any, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        require_known_keys(cfg, HOST)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("partition", {"strategy": "natural"}, "sdpo.partition"),
        ("policy_init", "base", "sdpo.policy_init"),
        ("policy-init", "base", "sdpo.policy_init"),
        ("reference", "base", "sdpo.reference"),
        ("Steps", [], "sdpo.steps"),
        ("export_steps", "last", "sdpo.export_steps"),
        ("num_steps", 2, "sdpo.partition.num_steps"),
        ("strategy", "random", "sdpo.partition.strategy"),
        ("unit", "row", "sdpo.partition.unit"),
        ("score", "log_ratio", "sdpo.partition.score"),
        ("fractions", [0.5, 0.5], "sdpo.partition.fractions"),
    ],
)
def test_key_of_the_block_at_the_top_level(key: str, value: object, meant: str) -> None:
    assert refusal({"rl": "sdpo", key: value}) == (
        f"{key}: {value!r} stands at the top level of the config, where the host knows no such key and drops it; did "
        f"you mean {meant}? Move it there, or remove it."
    )


def test_every_key_of_the_block_has_its_place() -> None:
    assert set(OWNERS) == {*SDPOConfig.model_fields, *PartitionArgs.model_fields}


@pytest.mark.parametrize(
    "key", ["sdop", "SDPO", "spdo", "sdp", "dspo", "dpo", "sdpoo", "sdpo_config", "sdpo-plugin", " sdpo"]
)
@pytest.mark.parametrize("value", [{"policy_init": "base"}, None], ids=["block", "empty"])
def test_misspelt_block(key: str, value: object) -> None:
    assert refusal({"rl": "sdpo", key: value}) == (
        f"{key}: {value!r} stands at the top level of the config, where the host knows no such key and drops it; did "
        "you mean sdpo:? Rename it to sdpo, or remove it."
    )


def test_all_misplaced_keys_are_reported_at_once() -> None:
    lines = refusal({"sdop": {}, "unit": "row", "num_steps": 2}).splitlines()
    assert [line.split(":")[0] for line in lines] == ["sdop", "unit", "num_steps"]


def test_long_value_is_cut() -> None:
    line = refusal({"steps": [{"datasets": [{"path": "x" * 5000}]}]})
    assert line.startswith("steps: [{'datasets': [{'path': 'xxx")
    assert len(line) < 500


@pytest.mark.parametrize(
    "cfg",
    [
        {"sdpo": {"partition": {"strategy": "natural"}}},
        {"seed": 7, "learning_rate": 1e-6},
        {"name": "my run", "notes": {"unit": "row"}},
        {"sdpa": True, "std": 1.0, "steppes": 3, 7: "seven", None: 1, "": 2},
        {"fsdp": None},  # the host's own commands set it, also where its schema has no such key any more
        {"fsdp": ["full_shard", "auto_wrap"]},
    ],
    ids=["block", "host", "own-notes", "no-near-miss", "no-fsdp", "fsdp"],
)
def test_keys_that_pass(cfg: dict[Any, Any]) -> None:
    require_known_keys(cfg, HOST)


@pytest.mark.parametrize("key", ["reference", "num_steps", "sdpx"])
def test_key_that_another_plugin_brings_is_its_own(key: str) -> None:
    require_known_keys({key: 1}, HOST | {key})


@pytest.mark.parametrize("rl", ["sDPO", "SDPO", "spdo", "sdop", "s-dpo", " sdpo", "sdpo ", "s_dpo", "sdp", "Sdpo"])
def test_rl_that_is_nearly_sdpo(rl: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_known_rl(rl, KINDS)
    assert str(caught.value) == (
        f"rl: {rl!r} is no value that the host knows; did you mean rl: sdpo? Set that instead."
    )


@pytest.mark.parametrize("rl", ["sdpo", *KINDS, "grpo", "reward", None, ["sdpo"], {"sdpo": {}}, 1])
def test_rl_that_is_the_hosts_to_judge(rl: object) -> None:
    require_known_rl(rl, KINDS)


@pytest.mark.parametrize("name", ["sdpo_plugin.host.plugin.SDPOPlugin", "sdpo_plugin.plugin.SDPOPlugin"])
def test_other_name_of_the_plugin(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_plugin_name(["other.Plugin", "sdpo_plugin.SDPOPlugin", name])
    assert str(caught.value) == (
        f"plugins: {name!r} is not the plugin's name; did you mean 'sdpo_plugin.SDPOPlugin'? Set that instead."
    )


def test_right_name_passes() -> None:
    require_plugin_name(["other.Plugin", "sdpo_plugin.SDPOPlugin"])


@pytest.mark.parametrize(
    ("plugins", "listed"),
    [
        (["sdpo_plugin.SDPOPlugin"], True),
        (["a.B", "sdpo_plugin.host.plugin.SDPOPlugin"], True),
        (["sdpo_plugins.SDPOPlugin", None], False),
        ([], False),
        (None, False),
        ("sdpo_plugin.SDPOPlugin", False),
    ],
)
def test_whether_the_plugin_is_listed(plugins: object, listed: bool) -> None:
    assert is_listed(plugins) is listed
