"""The reproduction's parts that need no host: its task, its statistics, and that all variants have one budget."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from example_configs.reproduction.intervals import estimate, paired
from example_configs.reproduction.ranking import SOURCES, TRAINING_ROWS, Rows, World, flip, set_keys
from example_configs.reproduction.settings import SECOND_VARIANTS
from example_configs.reproduction.table import markdown
from example_configs.reproduction.variants import BATCH, NATURAL, VARIANTS, Settings, Variant, config
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.partition import Partition, easy_to_hard_rows, natural, random, stratified

ROOT = Path(__file__).parents[1]
SIZES = [TRAINING_ROWS] * len(SOURCES)
ACCURACIES = {"near": 0.5, "far": 0.8, "close": 0.4, "middling": 0.6}
MAY_DIFFER = {"rl", "plugins", "sdpo", "datasets", "rl_beta"}


def config_of(variant: Variant) -> dict[str, Any]:
    return config(variant, Settings(1e-3, 3), 7, Path("data"), Path("out"), ACCURACIES)


def partition_of(variant: Variant) -> Partition:
    """The steps that the variant trains, as rows of the pool; all rows at once for plain DPO."""
    if variant.block is None:
        return (np.arange(sum(SIZES)),)
    asked = SDPOConfig.model_validate(config_of(variant)["sdpo"]).partition
    if asked is None or asked.unit == "source":
        return natural(SIZES)
    if asked.strategy == "easy_to_hard":
        return easy_to_hard_rows(np.random.default_rng(0).normal(size=sum(SIZES)), asked.shares())
    assert asked.seed is not None
    if asked.strategy == "random":
        return random(sum(SIZES), asked.shares(), asked.seed)
    return stratified(SIZES, asked.shares(), asked.seed)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_each_pair_is_seen_equally_often(variant: Variant) -> None:
    """Every row in one step, the same epochs in each, and whole batches: 60 updates an epoch, 1,920 rows / 32."""
    steps = partition_of(variant)
    assert np.sort(np.concatenate(steps)).tolist() == list(range(1920))
    assert [len(step) % BATCH for step in steps] == [0] * len(steps)
    assert sum(len(step) // BATCH for step in steps) == 60


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_differ_in_the_method_alone(variant: Variant) -> None:
    plain, other = config_of(VARIANTS[0]), config_of(variant)
    assert {key: other[key] for key in other if key not in MAY_DIFFER} == {
        key: plain[key] for key in plain if key not in MAY_DIFFER
    }
    assert sorted(entry["path"] for entry in other["datasets"]) == sorted(entry["path"] for entry in plain["datasets"])
    assert other["rl_beta"] == (0.025 if "β" in variant.name else 0.1)


def test_names_are_distinct() -> None:
    """Results are kept by name."""
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("natural", ["near", "far", "close", "middling"]),
        ("reversed", ["middling", "close", "far", "near"]),
        ("hard_to_easy", ["close", "near", "middling", "far"]),  # accuracies 0.4, 0.5, 0.6, 0.8
    ],
)
def test_orders(order: str, expected: list[str]) -> None:
    entries = config_of(Variant("any", {}, order=order))["datasets"]
    assert [Path(entry["path"]).stem for entry in entries] == expected
    assert list(NATURAL) == ["near", "far", "close", "middling"]


def test_split_follows_the_seed() -> None:
    (drawn,) = (v for v in VARIANTS if v.name == "random split, T = 4")
    assert config_of(drawn)["sdpo"]["partition"] == {"strategy": "random", "num_steps": 4, "seed": 7}
    assert drawn.block == {"partition": {"strategy": "random", "num_steps": 4}}  # which other seeds use, too


def test_flip_exchanges_the_share() -> None:
    prompts = np.arange(40).reshape(10, 4)
    rows = flip(Rows(prompts, prompts + 100, prompts + 200), 0.3, np.random.default_rng(0))
    flipped = (rows.chosen != prompts + 100).any(axis=1)
    assert int(flipped.sum()) == 3  # 0.3 of 10
    assert (rows.chosen == np.where(flipped[:, None], prompts + 200, prompts + 100)).all()
    assert (rows.rejected == np.where(flipped[:, None], prompts + 100, prompts + 200)).all()


def test_rows_are_what_the_source_says() -> None:
    """Chosen: the true order. Rejected: two neighbours swapped, whose distance in the true order is the source's."""
    world = World(3)
    taken: list[int] = []
    for source in SOURCES:
        rows = world.preference_rows(source, 50)
        truth, other = world.rank[rows.chosen], world.rank[rows.rejected]
        assert (np.diff(truth) > 0).all()
        assert (np.sort(rows.prompts) == np.sort(rows.chosen)).all()
        (fall,) = (np.diff(other)[np.diff(other) < 0].reshape(50, -1),)  # once a row: where the swap is
        assert ((truth != other).sum(axis=1) == 2).all()
        assert fall.shape == (50, 1)
        assert -fall.min() <= source.gaps[1]
        assert -fall.max() >= source.gaps[0]
        taken += set_keys(rows.prompts).tolist()
    assert len(set(taken)) == 200  # no set of words twice
    prompts, answers = world.writer_answers(3000)
    assert not set(set_keys(prompts).tolist()) & set(taken)
    assert (np.sort(prompts) == np.sort(answers)).all()
    assert len(prompts) < 3000  # 200 of 35,960 sets are taken: some of 3,000 draws were among them


def test_estimate() -> None:
    """1 … 5: mean 3, s = √2.5 = 1.58114, s / √5 = 0.70711, times t(4) = 2.776."""
    found = estimate([1, 2, 3, 4, 5])
    assert (found.mean, found.half) == (3.0, pytest.approx(1.96292, abs=1e-5))
    assert found.excludes_zero
    assert not estimate([-1, 0, 1, 2, 3]).excludes_zero  # 1 ± 1.96
    assert estimate([3.0]).half == float("inf")


def test_paired_takes_differences_by_seed() -> None:
    """(2, 4, 7) − (1, 2, 3) = (1, 2, 4): mean 7/3, s = 1.52753, s / √3 = 0.88192, times t(2) = 4.303."""
    found = paired([2, 4, 7], [1, 2, 3])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(3.79489, abs=1e-4)


def test_table() -> None:
    """Differences are of the seeds that both have; those whose interval leaves out 0 are bold."""

    def run(accuracy: float) -> dict[str, float]:
        return {"reference_free_accuracy": accuracy, "implicit_reward_accuracy": 0.75, "gamma": 2.0}

    # Without seed 2: 0.01, 0.02: mean 0.015, s = 0.00707, / √2 = 0.005, times t(1) = 12.706: 0.064. And 0.1, 0.1.
    text = markdown(
        {
            "plain": {"0": run(0.7), "1": run(0.8)},
            "one": {"0": run(0.71), "1": run(0.82), "2": run(0.9)},
            "two": {"0": run(0.8), "1": run(0.9)},
        },
        "plain",
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert [line[0] for line in cells] == ["plain", "one", "two"]
    assert [line[2] for line in cells] == ["", "+0.015 ± 0.064", "**+0.100 ± 0.000**"]
    assert cells[0][1:2] + cells[0][3:] == ["0.750 ± 0.635", "0.750 ± 0.000", "+2.00 ± 0.00", "2"]


@pytest.mark.parametrize(
    ("name", "numbers"), [("results.json", range(len(VARIANTS))), ("results-1e-3.json", SECOND_VARIANTS)]
)
def test_page_shows_the_results_that_are_kept(name: str, numbers: Sequence[int]) -> None:
    """The tables of docs/reproduction.md are made from the files, and every variant has run with every seed."""
    results = json.loads((ROOT / "example_configs" / "reproduction" / name).read_text(encoding="utf-8"))
    assert list(results) == ["S, the base model", *(VARIANTS[number].name for number in numbers)]
    assert {tuple(by_seed) for by_seed in results.values()} == {("0", "1", "2", "3", "4")}
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert markdown(results, VARIANTS[0].name) in page
