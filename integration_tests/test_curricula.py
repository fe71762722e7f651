"""Curricula of `sdpo.partition` on the real host: each equals separate `rl: dpo` runs whose data sets a script has cut.

The script (`harness/cutting.py`) knows nothing of the plugin: it asks each model for the log-probs of the
texts, and sorts lines.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.cutting import cut, gammas
from integration_tests.harness.data import (
    Config,
    base_config,
    chat_set,
    pairs,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.deaths import live, outcome, read_plan
from integration_tests.harness.expected_log_probs import expect_texts, off, read_table, texts
from integration_tests.harness.host_runs import run_chain
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config

# The host shuffles what it merges; here a row of the pool is a line of the file.
SGD = {"optimizer": "sgd", "learning_rate": 1.0e-2, "shuffle_merged_datasets": False}
BY_ROW = {"strategy": "easy_to_hard", "unit": "row"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("curricula")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Config:
    """24 rows, none too long."""
    return chat_set(folder / "pool.jsonl", 24, 5)


def train_by_row(host: Host, model: Path, entry: Config, out: Path, **partition: Any) -> Path:
    """The run with the curriculum."""
    config = base_config(model, [entry], out, **SGD)
    return run_sdpo(host, sdpo_config(config, sdpo={"partition": {**BY_ROW, **partition}}))


def test_steps_that_grow_without_the_hardest_rows(host: Host, model: Path, folder: Path, pool: Config) -> None:
    """A quarter of 24 rows is left out; of the other 18 step 1 has the easiest 9 and step 2 all."""
    out = train_by_row(host, model, pool, folder / "grow", num_steps=2, pool="cumulative", drop_hardest=0.25)
    ranked = np.argsort(-gammas(host, pool, model), kind="stable")
    sets = [cut(pool, ranked[:number], folder / f"grow-{number}.jsonl") for number in (9, 18)]
    chain = run_chain(host, base_config(model, sets, folder / "grow-by-hand", **SGD), sets, folder / "grow-by-hand")
    for number, by_hand in enumerate(chain, 1):
        assert apart(out / f"step-{number}", by_hand) <= 1e-6
    report = read_report(out)
    assert [step["num_rows"] for step in report["steps"]] == [9, 18]
    (left_out,) = report["left_out"]
    assert left_out == {"source": f"{pool['path']}:train", "num_rows": 6, "of_rows": 24, "key": "drop_hardest"}
    assert report["overlaps"] == []
    assert None not in (cell for line in report["train"]["gamma"] for cell in line)


def test_drawn_pool_that_grows_killed_twice_with_a_cache_of_tables(
    host: Host, model: Path, folder: Path, pool: Config
) -> None:
    """In a pass and in training, at seeded moments: the same bits as of a run that lives and keeps no tables."""
    small = chat_set(folder / "small.jsonl", 12, 9)
    drawn = {"max_rows": 20, "weights": [1, 1], "pool": "cumulative", "drop_hardest": 0.2}
    config = base_config(model, [pool, small], folder / "drawn", **SGD, save_strategy="steps", save_steps=1)
    life = live(host, config, sdpo={"partition": {**BY_ROW, "num_steps": 2, **drawn}})
    plan = read_plan(life.out)
    assert [step["num_rows"] for step in plan["steps"]] == [8, 16]
    assert sorted((part["num_rows"], part["key"]) for part in plan["left_out"])[-1] == (14, "max_rows")
    cached = {**life.config["sdpo"], "reference_cache": str(folder / "cache")}
    sharing = replace(life, config={**life.config, "sdpo": cached})
    moments = [life.moments(kind, 1, seed=1)[0] for kind in ("reference pass", "training")]
    killed, whole = (outcome(host, out) for out in (sharing.resume(sharing.die(folder / "killed", *moments)), life.out))
    assert list((folder / "cache").iterdir())
    killed["report"].pop("from_cache"), whole["report"].pop("from_cache")
    assert killed == whole


# --- by a column of the data ---


def gap(line: int) -> float:
    """A number for each line, in an order of its own: 7 and 37 have no factor in common."""
    return float(line * 7 % 37) / 2


@pytest.fixture(scope="module")
def rated(folder: Path) -> list[Config]:
    """A set that the host transforms, with two rows that are too long and three that stand twice; and one of plain
    texts, which it takes as they are. 24 and 12 rows are left, with 36 different numbers."""
    chats = chat_set(folder / "rated.jsonl", 24, 7)
    rows = [{**row, "gap": gap(line)} for line, row in enumerate(read_rows(Path(chats["path"])))]
    long_rows = [{**rows[0], "chosen": {"role": "assistant", "content": "the " * 400}, "gap": -1.0}] * 2
    write_rows(Path(chats["path"]), [*rows[:5], *long_rows, *rows[5:], *rows[:3]])
    plain = [
        {"prompt": row["question"], "chosen": row["chosen"], "rejected": row["rejected"], "gap": gap(24 + line)}
        for line, row in enumerate(pairs(12, 8))
    ]
    path = write_rows(folder / "plain.jsonl", plain)
    return [chats, {"path": str(path), "ds_type": "json", "split": "train", "type": None}]


def train_rated(host: Host, model: Path, rated: list[Config], out: Path, **partition: Any) -> Path:
    """One update a step; the host shuffles, drops and deduplicates."""
    own = {"max_steps": 1, "dataset_exact_deduplication": True, "dataset_prepared_path": str(out.parent / "prepared")}
    config = base_config(model, rated, out, **own)
    return run_sdpo(host, sdpo_config(config, sdpo={"partition": {"strategy": "easy_to_hard", **partition}}))


def test_rows_in_the_order_of_a_column(host: Host, model: Path, folder: Path, rated: list[Config]) -> None:
    """Step 1 has the 18 rows with the lowest numbers, told by their log-probs; the base model has not ranked any. A
    second run finds the set prepared."""
    block = {"unit": "row", "num_steps": 2, "column": "gap", "descending": False}
    out, again = (train_rated(host, model, rated, folder / "rated" / name, **block) for name in ("first", "again"))
    chats = texts(rated[0])
    plain = read_rows(Path(rated[1]["path"]))
    eos = "<|im_end|>"
    pool = [row for line, row in enumerate(chats) if line not in (5, 6, *range(26, 29))] + [
        {"prompt": row["prompt"], "chosen": row["chosen"] + eos, "rejected": row["rejected"] + eos} for row in plain
    ]
    first = np.argsort([gap(line) for line in range(36)])[:18]
    (expected,) = expect_texts(host, [pool[line] for line in first], model)
    found = read_table(out, "step-1")
    assert off(found[np.argsort(found[:, 0])], expected[np.argsort(expected[:, 0])]) < 1e-3
    assert not (out / "sdpo" / "pool").exists()
    digests = [[step["rows_digest"] for step in read_plan(folder)["steps"]] for folder in (out, again)]
    assert digests[0] == digests[1]


def test_sources_in_the_order_of_a_column(host: Host, model: Path, folder: Path, rated: list[Config]) -> None:
    """Lines 0 to 23 have a mean of 8.875, lines 24 to 35 one of 9.083."""
    means = [float(np.mean([gap(line) for line in lines])) for lines in (range(24), range(24, 36))]
    assert means[0] < means[1]
    report = read_report(train_rated(host, model, rated, folder / "rated" / "source", column="gap"))
    assert [(Path(s["source"]).name, s["num_rows"], s["mean"]) for s in report["rated"]] == [
        ("plain.jsonl:train", 12, pytest.approx(means[1])),
        ("rated.jsonl:train", 24, pytest.approx(means[0])),
    ]
    assert [step["num_rows"] for step in report["steps"]] == [12, 24]


@pytest.mark.parametrize(
    ("value", "column", "said"),
    [
        (None, "gap", "is nan in row 11, and every row needs a finite number (3 of 29 have none)"),
        ("high", "label", "does not hold numbers but values of type string: row 0 has 'low'"),
        (None, "gaps", "is no column of these rows. Columns found: messages, chosen, rejected, gap, label. Set one."),
    ],
)
def test_rows_without_a_number_are_refused(
    host: Host, model: Path, folder: Path, rated: list[Config], value: str | None, column: str, said: str
) -> None:
    rows = [{**row, "label": "low"} for row in read_rows(Path(rated[0]["path"]))]
    rows[11] |= {"gap": float("nan")} if value is None else {"label": value}
    rows[13]["gap"], rows[15]["gap"] = None, float("inf")
    path = write_rows(folder / f"bad-{column}.jsonl", rows)
    block = {"partition": {"strategy": "easy_to_hard", "column": column}}
    config = base_config(model, [{**rated[0], "path": str(path)}, rated[1]], folder / f"bad-{column}")
    made = write_config(folder / f"bad-{column}" / "config.yaml", sdpo_config(config, sdpo=block))
    result = host.run(["preprocess", str(made)], made.parent)
    assert result.returncode != 0
    assert f"step {path.stem}: {path}:train: sdpo.partition.column: {column!r} {said}" in result.log_text


def test_texts_with_two_numbers_are_refused_among_rows_without_duplicates(
    host: Host, model: Path, folder: Path, rated: list[Config]
) -> None:
    """The last line is the third once more; its number was 2 · 7 / 2 = 7."""
    rows = read_rows(Path(rated[0]["path"]))
    path = write_rows(folder / "twice.jsonl", [*rows[:-1], {**rows[-1], "gap": 7.5}])
    block = {"partition": {"strategy": "easy_to_hard", "column": "gap"}}
    sets = [{**rated[0], "path": str(path)}, rated[1]]
    config = base_config(model, sets, folder / "twice", dataset_exact_deduplication=True)
    made = write_config(folder / "twice" / "config.yaml", sdpo_config(config, sdpo=block))
    result = host.run(["preprocess", str(made)], made.parent)
    assert result.returncode != 0
    said = (
        f"step twice: {path}:train: sdpo.partition.column: 'gap' is (7.0 in one row and 7.5|7.5 in one row and 7.0) in"
    )
    assert re.search(said, result.log_text)
