"""Rows as token ids: each set is tokenized once, and a prompt begins with one BOS, whoever writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from integration_tests.harness.data import Config, base_config, chat_set, intel_set, write_config
from integration_tests.harness.launch import Host
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """A set that goes through the chat template, with rows that the host drops, and one that does not."""
    folder = tmp_path_factory.mktemp("sets")
    return [chat_set(folder / "d1.jsonl", 12, 1, long_rows=3), intel_set(folder / "d2.jsonl", 8, 2)]


@pytest.fixture(scope="module")
def bos_model(host: Host, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer adds BOS, and whose chat template writes it."""
    out = tmp_path_factory.mktemp("model") / "bos"
    host.python("integration_tests.harness.models:write_bos", model, out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run writes."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(host: Host, bos_model: Path, sets: list[Config], folder: Path) -> Result:
    """A run of two steps with rows held out."""
    config = sdpo_config(base_config(bos_model, sets, folder, val_set_size=0.25, eval_strategy="epoch"))
    config["plugins"].append("integration_tests.harness.faults.FaultPlugin")
    env = {"SDPO_TEST_FAULT": f"reads:{folder / 'reads'}"}
    return host.train(write_config(folder / "config.yaml", config), env=env).check()


def expected(model: str, prepared: str, rows: list[int]) -> list[str]:
    """The digest of the training rows of each step, tokenized here, with one BOS in front. Runs in a fork."""
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    from sdpo_plugin.rows import facts_of

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = {}
    for path in Path(prepared).glob("*/dataset_info.json"):
        made = []
        for row in load_from_disk(str(path.parent)):
            text = row["prompt"].removeprefix(tokenizer.bos_token)
            ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (row["chosen"], row["rejected"])]
            made.append([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]], *ids])
        found[len(made)] = made[: -len(made) // 4]  # the last quarter is held out
    import numpy as np

    digests = []
    for number in rows:
        columns = list(zip(*found[number], strict=True))
        parts = [(np.concatenate([*map(np.array, column)]), np.array([*map(len, column)])) for column in columns]
        digests.append(facts_of(parts).digest())
    return digests


def test_prompts_begin_with_one_bos(
    host: Host, bos_model: Path, sets: list[Config], folder: Path, result: Result
) -> None:
    """Also where the tokenizer is the only one to write it."""
    plan = json.loads((folder / "out/sdpo/plan.json").read_text(encoding="utf-8"))
    here = "integration_tests.test_tokens:expected"
    digests = host.python(here, bos_model, folder / "prepared", [12, 8])
    assert [step["rows_digest"] for step in plan["steps"]] == digests


def test_the_second_bos_is_reported(result: Result) -> None:
    """One line a set, with the number of rows; none for a set that has one BOS anyway."""
    said = re.findall(r"(\S+ \S+): (\d+) of (\d+) prompts begin with the BOS token '<s>' twice: (.*)", result.log_text)
    assert [(name, count, rows) for name, count, rows, _ in said] == [
        ("source 1", "9", "9"),
        ("held-out step-1", "3", "3"),
    ]
    assert "The second is dropped" in said[0][3]
    assert "plain rl: dpo keeps both" in result.log_text


def test_each_set_is_tokenized_once(result: Result) -> None:
    """The host's constructor does not do it too."""
    names = re.findall(r"Tokenizing (.+?) dataset: 100%", result.log_text)
    assert sorted(set(names)) == ["held-out step-1", "held-out step-2", "source 1", "source 2"]
    assert "Tokenizing train dataset" not in result.log_text
    assert "Tokenizing eval dataset" not in result.log_text


def test_facts_of_rows_are_worked_out_once(folder: Path, result: Result) -> None:
    """Of training and held-out rows of each step: layout, positions, and three models evaluated ask for them."""
    assert sorted(map(int, (folder / "reads").read_text(encoding="utf-8").split())) == [2, 3, 6, 9]


def test_report_counts_dropped_rows(folder: Path, result: Result) -> None:
    """In the JSON and in the table for reading."""
    assert [step["num_dropped"] for step in read_report(folder / "out")["steps"]] == [3, 0]
    text = (folder / "out/sdpo/report.md").read_text(encoding="utf-8")
    assert re.search(r"^step +rows +dropped ", text, re.MULTILINE)
    assert re.search(r"^M_1 step-1 +9 +3 ", text, re.MULTILINE)
