"""`lora_model_dir`: a chain that starts from an adapter goes on where the run ended that has made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, even_set, lora_config, write_config
from integration_tests.harness.deaths import Life, live
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.sdpo import PADDED, read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

ADAMW = {"learning_rate": 1.0e-2, "num_epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def sets(folder: Path) -> list[Config]:
    """Rows of one length, in which no padding can differ: see test_equivalence.py."""
    return [even_set(folder / f"d{number}.jsonl", 16, number) for number in (1, 2, 3)]


def chain(model: Path, sets: list[Config], folder: Path, block: Config | None = None, **settings: Any) -> Config:
    """A LoRA chain over these sets; one alone is a step, too."""
    config = lora_config(model, [], folder, **ADAMW | settings)
    steps = [{"datasets": [entry]} for entry in sets]
    return sdpo_config(config, datasets=None, sdpo={**PADDED, "steps": steps, **(block or {})})


@pytest.fixture(scope="module")
def first(host: Host, model: Path, sets: list[Config], folder: Path) -> Path:
    """The chain of D_1, D_2 and D_3 at one go."""
    return run_sdpo(host, chain(model, sets, folder / "at-once"))


@pytest.fixture(scope="module")
def life(host: Host, model: Path, sets: list[Config], folder: Path, first: Path) -> Life:
    """The chain of D_2 and D_3, which starts from the M_1 of the other."""
    config = chain(model, sets[1:], folder / "goes-on", lora_model_dir=str(first / "step-1"))
    return live(host, config)


def test_equals_the_chain_at_one_go(first: Path, life: Life) -> None:
    """Each model to the bit, and M_0 is the adapter that it started from."""
    exported = life.out / "sdpo" / "start"
    assert apart(exported, first / "step-1") == 0.0
    assert apart(life.out / "step-1", first / "step-2") == 0.0
    assert apart(life.out, first) == 0.0
    assert apart(life.out, first / "step-1") > 1e-2


def test_the_reference_is_the_base_with_the_adapter(first: Path, life: Life) -> None:
    """γ of D_2 under it is what it was in the chain at one go, and both steps begin at ln 2."""
    mine, whole = read_report(life.out), read_report(first)
    assert mine["train"]["gamma"][0] == whole["train"]["gamma"][1][1:]
    assert [step["first_loss"] for step in mine["steps"]] == [step["first_loss"] for step in whole["steps"][1:]]


def test_killed_and_resumed(host: Host, folder: Path, life: Life) -> None:
    """Before M_0 is kept, and in the middle of step 2: the same bits. Then with another adapter: refused."""
    (late,) = life.moments("training", 2)[1:]
    config = life.die(folder / "dead", life.prepared - 1, late)
    other = Path(shutil.copytree(life.out / "step-1", folder / "other"))
    left = folder / "dead" / "out"
    changed = {**life.config, "output_dir": str(left), "lora_model_dir": str(other)}
    result = host.train(write_config(folder / "changed.yaml", changed))
    said = "base_model: content of the adapter is"
    assert said in result.log_text, result.log_text[-3000:]
    assert result.returncode == 1
    assert apart(life.resume(config), life.out) == 0.0


@pytest.mark.parametrize("block", [{"reference": "base"}, {"policy_init": "base"}], ids=["reference", "start"])
def test_base_means_the_adapter_too(
    host: Host, model: Path, sets: list[Config], tmp_path: Path, first: Path, block: Config
) -> None:
    """Whoever is held to it, or begins there again, does so with the adapter. The report tells by γ under M_0."""
    config = chain(model, [sets[1]] * 2, tmp_path, block, lora_model_dir=str(first / "step-1"))
    out = run_sdpo(host, config)
    report = read_report(out)
    (gamma,) = {step["gamma_ref"]["mean"] for step in report["steps"][: 2 if "reference" in block else 1]}
    assert gamma == report["train"]["gamma"][0][0] == read_report(first)["train"]["gamma"][1][1]
    if "policy_init" in block:  # held to M_1, from the adapter again: its margins are those of the adapter
        assert report["steps"][1]["first_loss"] != pytest.approx(0.693147, abs=1e-3)


def test_two_ranks(host: Host, model: Path, sets: list[Config], tmp_path: Path, first: Path, life: Life) -> None:
    """Under ZeRO-3, which shards the adapter in its first engine."""
    zero3 = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2}
    config = chain(model, sets[1:], tmp_path, lora_model_dir=str(first / "step-1"), max_steps=1, **zero3)
    out = run_sdpo(host, config, ranks=2)
    assert apart(out / "sdpo" / "start", first / "step-1") == 0.0
    assert read_report(out)["train"]["gamma"][0] == pytest.approx(read_report(life.out)["train"]["gamma"][0], abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"lora_r": 8}, ("another adapter: its r is 4, and lora_r is 8; set lora_r: 4",)),
        ({"lora_alpha": 16}, ("its lora_alpha is 8, and lora_alpha is 16; set lora_alpha: 8",)),
        (
            {"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]},
            ("'down_proj'", "the config is for ['q_proj', 'v_proj']", "set lora_target_modules"),
        ),
        (
            {"lora_modules_to_save": ["lm_head", "embed_tokens"]},
            ("its modules_to_save is [], and lora_modules_to_save is ['embed_tokens', 'lm_head']; set",),
        ),
        ({"lora_model_dir": "/nope/adapter"}, ("lora_model_dir: '/nope/adapter' is no directory",)),
        ({"adapter": None}, ("conflicts with lora_model_dir", "(adapter: None)")),
    ],
    ids=["rank", "scale", "modules", "saved", "absent", "full"],
)
def test_what_contradicts_it_is_refused(
    host: Host, model: Path, sets: list[Config], tmp_path: Path, first: Path, settings: Config, parts: tuple[str, ...]
) -> None:
    """With both values, before anything is trained."""
    config = chain(model, sets[1:], tmp_path, **{"lora_model_dir": str(first / "step-1")} | settings)
    result = host.train(write_config(tmp_path / "config.yaml", config))
    refused(result, tmp_path / "out", *parts)


def test_evaluate_takes_the_last_model(host: Host, life: Life, sets: list[Config], tmp_path: Path) -> None:
    """With the file of the run, whose key names the adapter to start from; another one is what is to be evaluated."""
    steps = [{**step, "test_datasets": [sets[0]]} for step in life.config["sdpo"]["steps"]]
    made = {**life.config, "sdpo": {**life.config["sdpo"], "steps": steps}}
    path = write_config(tmp_path / "config.yaml", made)
    said = host.run(["evaluate", str(path), "--launcher", "python"], tmp_path).check().log_text
    assert f"evaluating M_2 from {life.out}" in said
    other = str(life.out / "step-1")
    asked = ["evaluate", str(path), "--launcher", "python", "--lora-model-dir", other]
    assert f"evaluating {other} from {other}" in host.run(asked, tmp_path).check().log_text
