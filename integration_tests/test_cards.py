"""The model cards of a run: whichever part of the host writes a README.md, this one stands there in the end."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.fresh import run_fresh
from integration_tests.harness.hub import Hub, local_hub
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
SAVING = {"val_set_size": 0.25, "eval_strategy": "epoch", "save_strategy": "epoch"}
ORIGIN = "somebody/tiny-llama"
LEARNING_RATE = 1.0e-3
LICENSED = f"---\nlicense: apache-2.0\nbase_model:\n- {ORIGIN}\n---\n# The base\n"


def config_of(model: Path, datasets: list[Config], folder: Path, **options: Any) -> Config:
    """Held-out rows of each set, and a checkpoint at the end of each step."""
    return base_config(model, datasets, folder, learning_rate=LEARNING_RATE, **SAVING, **options)


def cards_of(out: Path) -> dict[str, str]:
    """Every README.md below a directory, by its folder."""
    found = sorted(out.rglob("README.md"))
    return {str(path.parent.relative_to(out)): path.read_text(encoding="utf-8") for path in found}


def front_matter(card: str) -> dict[str, Any]:
    """As the hub reads it."""
    data: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return data


def steps_of(card: str) -> dict[str, list[str]]:
    """The table of steps by model."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| M_")]
    return {line[0]: line[1:] for line in lines}


def parsed(cards: list[str]) -> list[dict[str, Any]]:
    """The metadata of cards as huggingface_hub's own class has them. Runs in a fork."""
    from huggingface_hub import ModelCard

    return [ModelCard(card).data.to_dict() for card in cards]


def named(folder: str) -> dict[str, Any]:
    """Base models by where they lie, as cards name them. Runs in a fork, which lays a model into the hub's cache."""
    from axolotl.utils.dict import DictDefault
    from huggingface_hub import constants

    from sdpo_plugin.host.model_card import base_of, on_hub

    root, cached = Path(folder), Path(constants.HF_HUB_CACHE) / "models--org--cached"
    card = "license: other\nlicense_name: own-1.0\nlicense_link: LICENSE"
    snapshot = cached / "snapshots" / ("0" * 40)
    for place, front in (
        (snapshot, card),
        (root / "of-config", card),
        (root / "damaged", "license: [unclosed"),
        (root / "of-a-path", f"base_model: {root}/damaged\nlicense: mit"),
    ):
        place.mkdir(parents=True)
        (place / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    (root / "of-config" / "config.json").write_text(json.dumps({"_name_or_path": "org/origin"}))
    places = ["org/cached", "org/unknown", "gpt2", *(str(path) for path in (snapshot, *sorted(root.iterdir())))]
    found = [base_of(DictDefault(base_model=place)) for place in places]
    data = [{"path": "org/pairs", "split": "train"}, {"path": "json"}, {"path": f"{root.name}/damaged"}]
    os.chdir(root.parent)
    sets = on_hub(DictDefault(datasets=data, sdpo={"reference": "org/reference"}))
    return {"bases": [[base.name, base.hub_id, dict(base.license)] for base in found], "on hub": sets}


@pytest.fixture(scope="module", params=[{}, LORA], ids=["full", "lora"])
def trained(
    host: Host, model: Path, two_sets: list[Config], request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Path:
    """A run with checkpoints and held-out sets, of a base model that has a card."""
    folder = tmp_path_factory.mktemp("cards")
    base = Path(shutil.copytree(model, folder / "my-sft"))
    (base / "README.md").write_text(LICENSED, encoding="utf-8")
    return run_sdpo(host, config_of(base, two_sets, folder, **request.param))


def test_one_card_in_every_place(trained: Path) -> None:
    """18 and 24 rows in batches of 4, saved at the end of the epoch."""
    cards = cards_of(trained)
    titles = {folder: re.findall(r"^# (.*)$", card, re.MULTILINE) for folder, card in cards.items()}
    assert titles == {
        ".": ["out"],
        "step-1": ["out, M_1 (step-1)"],
        "step-1/checkpoint-5": ["out, M_1 (step-1)"],
        "step-2": ["out"],
        "step-2/checkpoint-6": ["out"],
    }
    unfinished = {folder for folder, card in cards.items() if "**Not finished:**" in card}
    assert unfinished == {"step-1/checkpoint-5", "step-2/checkpoint-6"}


def test_no_card_says_none_or_where_somebody_s_files_are(trained: Path, two_sets: list[Config]) -> None:
    folders = {str(Path(entry["path"]).parent) for entry in two_sets} | {str(trained.parent)}
    for card in cards_of(trained).values():
        assert not re.search(r"\b[Nn]one\b", card)
        assert not [folder for folder in folders if folder in card]
        assert not re.search(r"[\s`\"']/\w+/", card)


def test_metadata_as_the_hub_reads_them(trained: Path, host: Host) -> None:
    """The base is a local model, which names its own; an adapter of it fits no other."""
    cards = cards_of(trained)
    adapter = (trained / "adapter_config.json").exists()
    for data in host.python("integration_tests.test_cards:parsed", list(cards.values())):
        assert data == {
            "base_model": ORIGIN,
            "base_model_relation": "finetune",
            "library_name": "peft" if adapter else "transformers",
            "pipeline_tag": "text-generation",
            "license": "apache-2.0",
            "tags": ["stepwise-dpo", "dpo", "trl", "axolotl", "generated_from_trainer", *(["lora"] * adapter)],
        }


def test_lineage_and_steps(trained: Path) -> None:
    cards, report = cards_of(trained), read_report(trained)
    origin = f"the local model `my-sft`, which was made from [{ORIGIN}](https://huggingface.co/{ORIGIN})"
    for card in cards.values():
        assert f"\n- M_0: {origin}\n" in card
    assert "\nM_0 → **M_1**\n" in cards["step-1"]
    assert "\nM_0 → M_1 → **M_2**\n" in cards["step-2"]
    assert "\nM_0 → M_1 → **M_2**\n" in cards["."]
    steps = steps_of(cards["."])
    accuracies = [[f"{value:.3f}" for value in line] for line in report["heldout"]["reference_free_accuracy"]]
    assert steps["M_0"] == [""] * 9 + accuracies[0]
    for index, file, rows, updates in ((1, "d1", 18, 5), (2, "d2", 24, 6)):
        step = report["steps"][index - 1]
        losses = [f"{step[key]:.4f}" for key in ("first_loss", "final_loss")]
        assert steps[f"M_{index}"] == [
            *(f"step-{index}", f"{file}.jsonl:train", str(rows), str(updates), "0.1", f"{LEARNING_RATE:g}"),
            *(f"{step['gamma_ref']['mean']:+.2f}", *losses, *accuracies[index]),
        ]
    # A model meets the held-out sets when its card is written.
    assert steps_of(cards["step-1"]) == {"M_0": steps["M_0"], "M_1": [*steps["M_1"][:9], "–", "–"]}


def test_config_and_versions(trained: Path) -> None:
    card = cards_of(trained)["."]
    config = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert (config["rl"], config["base_model"], config["learning_rate"]) == ("sdpo", "my-sft", LEARNING_RATE)
    assert [entry["path"] for entry in config["datasets"]] == ["d1.jsonl", "d2.jsonl"]
    for package, version in read_report(trained)["versions"].items():
        assert f"\n- {package}: {version}\n" in card


def test_run_with_an_edited_card_is_whole(trained: Path, host: Host) -> None:
    """Resumed, it says that it is finished, and leaves every card alone."""
    for folder in (trained, trained / "step-1"):
        with (folder / "README.md").open("a", encoding="utf-8") as card:
            card.write("\nMore about it.\n")
    before = cards_of(trained)
    seals = [json.loads((trained / f"step-{index}" / "sdpo_seal.json").read_text()) for index in (1, 2)]
    assert not [seal for seal in seals if "README.md" in seal["files"]]
    assert "this run is finished" in resume(host, trained)
    assert cards_of(trained) == before


def test_final_model_that_is_written_again_gets_a_card_with_the_figures_that_are_there(
    trained: Path, host: Host
) -> None:
    """They are pushed with it; the cards of steps stand in directories of their own, and show none."""
    weights = next(trained.glob("*model.safetensors"))
    weights.unlink()
    (trained / "sdpo" / "gamma_ref.png").write_bytes(b"a picture")
    assert "the final model" in resume(host, trained)
    assert weights.exists()
    with_figures = {folder for folder, card in cards_of(trained).items() if "![gamma ref](sdpo/gamma_ref.png)" in card}
    assert with_figures == {"."}


def resume(host: Host, out: Path) -> str:
    """The log of a run that is resumed."""
    return host.train(out.parent / "config.yaml", "--auto-resume-from-checkpoints").check().log_text


@pytest.fixture(scope="module")
def pushed(model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A LoRA run that pushes every checkpoint and the final model to a hub, by huggingface_hub's own requests."""
    folder = tmp_path_factory.mktemp("push")
    config = config_of(model, two_sets, folder, hub_model_id="me/aligned", hub_strategy="checkpoint", **LORA)
    file = write_config(folder / "config.yaml", sdpo_config(config))
    with local_hub() as hub:
        run_fresh(["train", str(file), "--launcher", "python"], folder, folder / "host", hub.environment()).check()
    return hub


def test_cards_of_a_repository(pushed: Hub, model: Path) -> None:
    """TRL's would have failed the last push: Axolotl gives it data set tags, which it does not take."""
    assert pushed.commits[-1][0] == "End of training"
    assert any(message.startswith("Training in progress") for message, _ in pushed.commits)
    for _, files in pushed.commits:
        cards = {path: content.decode() for path, content in files.items() if path.endswith("README.md")}
        assert cards
        for card in cards.values():
            assert not re.search(r"\b[Nn]one\b", card)
            assert str(model) not in card
            assert "# aligned" in card
            assert front_matter(card)["library_name"] == "peft"
    assert "\n# aligned\n" in pushed.files["README.md"].decode()
    assert "**Not finished:**" not in pushed.files["README.md"].decode()
    assert "\n# aligned, M_1 (step-1)\n" in pushed.files["step-1/README.md"].decode()
    assert "sdpo/report.md" in pushed.files


def test_names_and_licences_of_base_models(host: Host, tmp_path: Path) -> None:
    """A relative path looks like a hub id; the disk tells them apart. A licence beside a local model has no address."""
    found = host.python("integration_tests.test_cards:named", tmp_path / "models")
    own = {"license": "other", "license_name": "own-1.0"}
    linked = {**own, "license_link": "https://huggingface.co/org/cached/blob/main/LICENSE"}
    assert found["bases"] == [
        ["org/cached", "org/cached", linked],
        ["org/unknown", "org/unknown", {}],
        ["gpt2", "gpt2", {}],
        ["org/cached", "org/cached", linked],  # by the path of its snapshot
        ["damaged", None, {}],
        ["of-a-path", None, {"license": "mit"}],
        ["of-config", "org/origin", own],
    ]
    assert found["on hub"] == {"org/pairs:train": "org/pairs", "org/reference": "org/reference"}
