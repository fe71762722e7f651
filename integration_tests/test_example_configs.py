"""Every shipped example config works: the host takes it, the plugin reads it, its header says how to run it.

The configs are loaded as they stand, offline, with stand-ins for the models and data that they name; none is trained.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from integration_tests.harness.data import WORDS
from integration_tests.harness.env import ROOT
from integration_tests.harness.launch import Host
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.recognition import TRAINER_CLS
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.step_conflicts import SINCE
from sdpo_plugin.steps_args import StepArgs

FOLDER = ROOT / "example_configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
NAMES = [str(path.relative_to(FOLDER)) for path in CONFIGS]
# What cuts the data into steps, and how many steps that makes.
STEPS: dict[str, tuple[str | None, int]] = {
    "chain-t2.yaml": ("random", 2),
    "chain-t3.yaml": ("random", 3),
    "chain-t4.yaml": ("random", 4),
    "chain-t5.yaml": ("random", 5),
    "curriculum-by-rating.yaml": ("easy_to_hard", 3),
    "curriculum-rescored.yaml": ("easy_to_hard", 3),
    "easy-to-hard-by-row.yaml": ("easy_to_hard", 3),
    "easy-to-hard-by-source.yaml": ("easy_to_hard", 4),
    "from-adapter.yaml": (None, 2),
    "iterative-rpo.yaml": ("steps", 2),
    "llama-3-8b-lora.yaml": ("steps", 3),
    "mistral-7b-external-reference.yaml": (None, 2),
    "mistral-7b-full-zero3.yaml": ("natural", 2),
    "pre-dpo.yaml": (None, 2),
    "quickstart/quickstart.yaml": (None, 2),
    "self-play.yaml": ("steps", 3),
    "qwen2.5-7b-qlora.yaml": (None, 2),
    "solar-10.7b-policy-init-base.yaml": (None, 2),
    "solar-10.7b-random.yaml": ("random", 2),
    "solar-10.7b-reference-base.yaml": (None, 2),
    "solar-10.7b-sdpo.yaml": ("natural", 2),
    "solar-10.7b-stratified.yaml": ("stratified", 2),
    "tr-dpo.yaml": (None, 2),
}
# The host drops these from entries under `rl: dpo`, and does the same thing without them: they are its defaults.
DROPPED = {"ds_type": "json", "field_chosen": "chosen", "field_rejected": "rejected"}
MODELS = (SDPOConfig, StepArgs, PartitionArgs, RefreshArgs)
OPTIONS = {name for model in MODELS for name in model.model_fields}

Read = Callable[[str], dict[str, Any]]


@functools.cache
def text(name: str) -> str:
    """The file."""
    return (FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def written(name: str) -> dict[str, Any]:
    """The YAML of the file, as neither host nor plugin has changed it yet."""
    return dict(yaml.safe_load(text(name)))


def header(name: str) -> str:
    """The comment that the file opens with."""
    lines = text(name).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def command(name: str) -> str:
    """The launch command in the header, without the comment beside it."""
    (found,) = re.findall(r"^axolotl train .*$", header(name), re.MULTILINE)
    return str(found).partition("#")[0].strip()


@pytest.fixture(scope="module")
def read(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads a config through the host; every test of the same config shares what it found."""
    hub = tmp_path_factory.mktemp("hub")
    host.python("integration_tests.harness.example_configs:make_hub", hub)

    @functools.cache
    def once(name: str) -> dict[str, Any]:
        target = "integration_tests.harness.example_configs:read"
        return dict(host.python(target, FOLDER / name, hub, command(name)))

    return once


def test_every_config_is_expected_here() -> None:
    """A new example is added to the list with its number of steps; one that is deleted is removed from it."""
    assert set(NAMES) | {"quickstart/quickstart.yaml"} == set(STEPS)  # the quickstart is a demo of its own


@pytest.mark.parametrize("name", NAMES)
def test_header(name: str) -> None:
    """It says what the file is, on which hardware it runs, honestly, and with which command."""
    said = header(name)
    assert "sDPO" in said or "arXiv 2403.19270" in said
    assert re.search(r"^Needs .*\b(GPU|CPU)", said, re.MULTILINE)
    assert re.search(r"\d+ GB", said)
    assert "An estimate, not measured" in said or "no GPU" in said
    fetches = "axolotl fetch deepspeed_configs" in said
    assert fetches == str(written(name).get("deepspeed")).startswith("deepspeed_configs/")


@pytest.mark.parametrize("name", NAMES)
def test_sdpo_keys_are_explained(name: str) -> None:
    """Every option of the `sdpo:` block has a comment on its line; only a block's opening line may go without."""
    block = re.search(r"^sdpo:.*\n((?: .*\n)*)", text(name), re.MULTILINE)
    for line in block.group(1).splitlines() if block else ():
        key = re.match(r"[ -]*(\w+):", line)
        if key and key.group(1) in OPTIONS - {"partition"}:
            assert "  # " in line, line


@pytest.mark.parametrize("name", NAMES)
def test_launch_command(read: Read, name: str) -> None:
    """The host's command line takes it, it starts this file, and the global batch is the one that the file states."""
    launched = read(name)["launched"]
    assert ROOT / launched["config"] == FOLDER / name
    config = written(name)
    told = re.search(r"global batch (\d+)", text(name))
    if told:
        batch = config["micro_batch_size"] * config["gradient_accumulation_steps"] * launched["processes"]
        assert batch == int(told.group(1))
    assert told or launched["launcher"] == "python"


@pytest.mark.parametrize("name", NAMES)
def test_host_takes_it(read: Read, name: str) -> None:
    """It becomes an `rl: dpo` config with our trainer, and nothing in it vanishes silently."""
    found, config = read(name), written(name)
    assert (found["rl"], found["trainer_cls"]) == ("dpo", TRAINER_CLS)
    assert set(config) <= set(found["known"])
    steps = [] if config.get("datasets") else config["sdpo"]["steps"]
    trained = config.get("datasets") or [entry for step in steps for entry in step.get("datasets", [])]
    for said, kept in ((trained, found["datasets"]), (config.get("test_datasets") or [], found["test_datasets"] or [])):
        for entry, validated in zip(said, kept, strict=True):
            lost = {key: value for key, value in entry.items() if validated.get(key) != value}
            assert lost.items() <= DROPPED.items()


@pytest.mark.parametrize("name", NAMES)
def test_block_is_what_the_file_says(read: Read, name: str) -> None:
    """The validated block holds what is written, and beyond that only defaults."""
    said = written(name).get("sdpo") or {}
    assert SDPOConfig.model_validate(said).model_dump(exclude_unset=True) == said
    assert SDPOConfig.model_validate(read(name)["sdpo"]) == SDPOConfig.model_validate(said)


@pytest.mark.parametrize("name", NAMES)
def test_steps(read: Read, name: str) -> None:
    """The plan has the steps expected of the file, each held to the model, and starting from the one, that it says."""
    how, number = STEPS[name]
    block, plan = read(name)["sdpo"], read(name)["plan"]
    assert ("steps" if "steps" in block else block.get("partition", {}).get("strategy")) == how
    assert len(plan) == number
    assert all(bool(step["num_rows"]) != step["is_awaited"] for step in plan)
    before = [f"M_{index}" for index in range(number)]
    expected = {"previous": before, "base": ["M_0"] * number}
    assert [step["reference"] for step in plan] == expected.get(block["reference"], [block["reference"]] * number)
    assert [step["policy_init"] for step in plan] == expected[block["policy_init"]]


@pytest.mark.parametrize("name", NAMES)
def test_types_fit_the_columns(read: Read, name: str) -> None:
    """From the columns of the real sets each type makes a prompt that ends where the answer begins, and two answers."""
    for row in read(name)["rows"]:
        assert "user" in row["prompt"]
        assert re.search(r"assistant(<\|end_header_id\|>\n)?\n$", row["prompt"])
        assert row["chosen"] != row["rejected"]
        for side in ("chosen", "rejected"):
            answer, _, end = row[side].partition("<|")
            assert end in ("im_end|>", "eot_id|>")
            assert set(answer.split()) <= set(WORDS)


@pytest.mark.parametrize(
    ("pattern", "may_differ"),
    [("solar-10.7b-*.yaml", ("sdpo", "output_dir")), ("chain-t*.yaml", ("sdpo.partition.num_steps", "output_dir"))],
)
def test_variants_differ_in_one_thing(pattern: str, may_differ: tuple[str, ...]) -> None:
    """Files that are there to be compared differ in what they compare and in nothing else."""
    names = [name for name in NAMES if Path(name).match(pattern)]
    assert len(names) > 2
    rest = [[leaf for leaf in _leaves(written(name)) if not leaf[0].startswith(may_differ)] for name in names]
    assert all(other == rest[0] for other in rest)
    assert len({written(name)["output_dir"] for name in names}) == len(names)


def test_every_option_is_shown() -> None:
    """Every option of the `sdpo:` block, and every value of those that have a fixed set, is in at least one example.

    But not what only some hosts take: an example is one for all of them.
    """
    shown: dict[str, set[Any]] = {}
    for name in NAMES:
        for path, value in _leaves(written(name).get("sdpo") or {}):
            for key in path.split("."):
                shown.setdefault(key, set()).add(str(value))
    assert set(shown) >= OPTIONS - SINCE.keys()
    for model in MODELS:
        for option, field in model.model_fields.items():
            assert option in SINCE or shown[option] >= set(map(str, _literals(field.annotation))), option
    assert shown["reference"] > {"previous", "base"}  # and a model


def test_readme_lists_every_config() -> None:
    """The folder's README has a row for each file."""
    linked = re.findall(r"^\| \[`[^`]+`\]\(([^)]+\.yaml)\)", text("README.md"), re.MULTILINE)
    assert sorted(linked) == sorted(set(STEPS))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is neither a mapping nor a list of mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, value


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _literals(part)]
