"""Where the rows come from, and what shape the entries have."""

from typing import Any

import pytest

from sdpo_plugin.data_conflicts import check_data_sources, check_pool
from sdpo_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("datasets", "has_steps", "cuts_rows"),
    [
        pytest.param([{"path": "a"}, {"path": "b"}], False, False, id="an-entry-per-step"),
        pytest.param(None, True, False, id="steps"),
        pytest.param([], True, False, id="steps-and-an-empty-list"),
        pytest.param([{"path": "a"}], False, True, id="one-entry-cut-by-rows"),
        pytest.param([{"path": "a"}, {"path": "b"}], False, True, id="two-entries-cut-by-rows"),
    ],
)
def test_data_sources_that_pass(datasets: list[dict[str, Any]] | None, has_steps: bool, cuts_rows: bool) -> None:
    check_data_sources({"datasets": datasets}, has_steps, cuts_rows)


def test_nothing_cannot_be_cut_by_rows() -> None:
    with pytest.raises(ConfigError, match="rl: sdpo has no data: set datasets: with one entry per step"):
        check_data_sources({}, has_steps=False, cuts_rows=True)


@pytest.mark.parametrize(
    ("datasets", "has_steps", "message"),
    [
        pytest.param(
            [{"path": "a"}, {"path": "b"}],
            True,
            "both datasets: (2 entries) and sdpo.steps are set; keep sdpo.steps, "
            "or remove it and let each entry of datasets: be one step.",
            id="both",
        ),
        pytest.param(
            None,
            False,
            "rl: sdpo has no data: set datasets: with one entry per step, or sdpo.steps with datasets of its own.",
            id="neither",
        ),
        pytest.param(
            [{"path": "a.jsonl"}],
            False,
            "rl: sdpo with one entry in datasets: (path: 'a.jsonl') would be a single step; add an entry per step, "
            "or cut it by rows with sdpo.partition (e.g. strategy: easy_to_hard, unit: row, num_steps: 2), "
            "or, to mean one step, write it under sdpo.steps; for plain DPO set rl: dpo.",
            id="one-entry",
        ),
    ],
)
def test_data_sources_that_are_refused(datasets: list[dict[str, Any]] | None, has_steps: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_data_sources({"datasets": datasets}, has_steps)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"datasets: 3 is not a list"),
        ("x.jsonl", r"datasets: 'x.jsonl' is not a list"),
        ({"path": "x"}, r"datasets: \{'path': 'x'\} is not a list"),
        ([{"path": "x"}, None], r"datasets\[1\]: None is not a block"),
        ([{1: "x"}], r"datasets\[0\]: \{1: 'x'\} is not a block"),
    ],
)
def test_data_sets_of_another_shape_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data_sources({"datasets": value}, has_steps=False)
    with pytest.raises(ConfigError, match="test_" + message):
        check_data_sources({"datasets": [{"path": "x"}] * 2, "test_datasets": value}, has_steps=False)


def test_weights_are_one_for_each_entry() -> None:
    check_pool({"datasets": [{"path": "a"}]}, None, None)
    check_pool({"datasets": [{"path": "a"}, {"path": "b"}]}, [1.0, 2.0], None)
    with pytest.raises(ConfigError) as caught:
        check_pool({"datasets": [{"path": "a"}] * 3}, [1.0, 2.0], None)
    assert str(caught.value) == (
        "sdpo.partition.weights: [1.0, 2.0] has 2 numbers and datasets: 3 entries; "
        "give each entry one weight, in order."
    )


def test_rows_that_the_host_fetches_prepared_have_no_column() -> None:
    check_pool({"datasets": [{"path": "a"}]}, None, "gap")
    check_pool({"datasets": [{"path": "a"}], "push_dataset_to_hub": "me/rows"}, None, None)
    with pytest.raises(ConfigError) as caught:
        check_pool({"datasets": [{"path": "a"}], "push_dataset_to_hub": "me/rows"}, None, "gap")
    assert str(caught.value) == (
        "sdpo.partition.column: 'gap' conflicts with push_dataset_to_hub: 'me/rows': the host fetches the rows that "
        "lie there, which are prepared without the column; remove push_dataset_to_hub."
    )
