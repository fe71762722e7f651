"""`rl: dpo` becomes `rl: sdpo`, and nothing else: where the host loads installed plugins, and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.fresh import run_fresh
from integration_tests.harness.launch import Host
from integration_tests.harness.one_word import loads_it_by_itself
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.stored_weights import weights_digest

TRAIN = "integration_tests.harness.one_word:train"
PLUGIN = "sdpo_plugin.SDPOPlugin"
# What is imported to say that a config is not ours; none of it imports anything of the host's but two names.
LIGHT = {
    *("sdpo_plugin", "sdpo_plugin.crash", "sdpo_plugin.errors", "sdpo_plugin.plugin_name", "sdpo_plugin.recognition"),
    *("sdpo_plugin.scrub", "sdpo_plugin.text", "sdpo_plugin.versions", "sdpo_plugin.host", "sdpo_plugin.host.plugin"),
}
by_itself = pytest.mark.skipif(not loads_it_by_itself(), reason="this host loads no plugin that is not listed")
by_the_line = pytest.mark.skipif(loads_it_by_itself(), reason="this host loads the plugin by itself")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for what the host prepares."""
    return str(tmp_path_factory.mktemp("prepared"))


@by_itself
def test_one_word_is_enough(host: Host, model: Path, two_sets: list[Config], prepared: str, tmp_path: Path) -> None:
    """The same chain as with the line, which registers the plugin no second time."""
    digests = []
    for name, lines in {"one-word": {"plugins": None}, "with-the-line": {"plugins": [PLUGIN]}}.items():
        folder = tmp_path / name
        config = sdpo_config(base_config(model, two_sets, folder, dataset_prepared_path=prepared, max_steps=2), **lines)
        log = host.train(write_config(folder / "config.yaml", config)).check().log_text
        assert log.count(f"Plugin loaded successfully: {PLUGIN}") == 1
        assert log.count("stepwise DPO (sDPO), 2 steps") == 1
        digests.append([weights_digest(folder / "out" / part) for part in ("", "step-1")])
    assert digests[0] == digests[1]


@by_itself
def test_another_config_trains_as_without_the_plugin(
    host: Host, model: Path, two_sets: list[Config], prepared: str, tmp_path: Path
) -> None:
    """Bit-identical weights; of this package what says no is imported, and nothing is left behind."""
    seen: dict[bool, Any] = {}
    for installed in (True, False):
        folder = tmp_path / str(installed)
        config = base_config(model, two_sets, folder, dataset_prepared_path=prepared, max_steps=2)
        seen[installed] = host.python(TRAIN, write_config(folder / "config.yaml", config), installed)
        seen[installed]["weights"] = weights_digest(folder / "out")
    assert seen[True]["weights"] == seen[False]["weights"]
    assert (seen[True]["hook"], seen[False]["hook"]) == (True, True)
    assert seen[False]["imported"] == []
    assert set(seen[True]["imported"]) == LIGHT
    assert set(seen[True]["plugins"]) - set(seen[False]["plugins"]) == {PLUGIN}


@by_the_line
def test_without_the_line_the_host_refuses(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Nothing of ours is asked: plain DPO is not what is trained either."""
    config = sdpo_config(base_config(model, two_sets, tmp_path), plugins=None)
    result = host.train(write_config(tmp_path / "config.yaml", config))
    assert result.returncode != 0
    assert "rl\n  Input should be 'dpo'" in result.log_text


@by_the_line
def test_without_the_line_the_plan_says_so(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path), plugins=None))
    result = host.run(["sdpo", "plan", str(config)], tmp_path)
    assert result.returncode == 1
    assert (
        f"sdpo_plugin: {config} has rl: 'sdpo' and no plugin for it: it is not loaded by this host by itself; "
        f"add the line plugins: [{PLUGIN}]"
    ) in result.log_text


def test_plan_is_that_of_preprocess(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """`axolotl sdpo plan`, which writes no file of the run."""
    config = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path)))
    table = host.run(["sdpo", "plan", str(config)], tmp_path).check().log_text.rstrip().splitlines()[-4:]
    assert table[0].split()[:3] == ["step", "sources", "rows"]
    assert table[2].split()[:3] == ["1", "step-1", str(two_sets[0]["path"]) + ":train"]
    assert "\n".join(table) in host.run(["preprocess", str(config)], tmp_path).check().log_text
    assert not (tmp_path / "out" / "sdpo").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rl: dpo\n", "is no config of stepwise DPO; set rl: sdpo."),
        ("- rl: sdpo\n", "is no config of stepwise DPO; set rl: sdpo."),
        ("rl: [\n", "cannot be read as a config: while parsing"),
        (None, "cannot be read as a config: [Errno 2]"),
        (f"rl: dpo\nplugins: [{PLUGIN}]\nbase_model: x\ndatasets: []\n", ""),
    ],
)
def test_plan_of_what_is_no_config_of_ours(host: Host, tmp_path: Path, text: str | None, said: str) -> None:
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_text(text, encoding="utf-8")
    result = host.run(["sdpo", "plan", str(config)], tmp_path)
    assert result.returncode == 1
    assert said in result.log_text


def test_doctor_finds_what_is_installed(host: Host, tmp_path: Path) -> None:
    """By both names of the command; from a process that imports the host by itself."""
    result = host.run(["sdpo", "doctor"], tmp_path).check()
    held, of = (int(word) for word in result.log_text.partition("contracts: ")[2].split(" hold")[0].split(" of "))
    assert held == of > 50
    assert ("no line is needed" in result.log_text) == loads_it_by_itself()
    assert (f"add the line plugins: [{PLUGIN}]" in result.log_text) != loads_it_by_itself()


def test_command_is_listed(host: Host, tmp_path: Path) -> None:
    """By the real executable, whose help imports the command."""
    log = run_fresh(["--help"], tmp_path, host.scratch).check().log_text
    assert "sdpo " in log.partition("Commands:")[2]
