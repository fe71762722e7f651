"""Numbers that nothing can be trained with."""

import math
from typing import Any

import pytest

from sdpo_plugin.bounds import BOUNDS, check_bounds
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.steps_args import OVERRIDES

ABOVE_ZERO = ["learning_rate", "num_epochs", "rl_beta", "dpo_beta", "trl.beta"]
COUNTS = ["max_steps", "micro_batch_size", "gradient_accumulation_steps", "sequence_len"]
REMEDIES = {
    "learning_rate": "set e.g. learning_rate: 5.0e-7",
    "num_epochs": "set e.g. num_epochs: 1",
    "max_steps": "remove max_steps to train num_epochs, or set the number of updates of each step",
    "rl_beta": "set e.g. rl_beta: 0.1",
    "dpo_beta": "set e.g. dpo_beta: 0.1",
    "trl.beta": "set e.g. trl.beta: 0.1",
    "micro_batch_size": "set e.g. micro_batch_size: 1",
    "gradient_accumulation_steps": "set e.g. gradient_accumulation_steps: 1",
    "sequence_len": "set e.g. sequence_len: 2048",
    "dpo_ld_alpha": "set e.g. dpo_ld_alpha: 0.5",
    "warmup_ratio": "set e.g. warmup_ratio: 0.1",
    "warmup_steps": "set e.g. warmup_steps: 0",
    "weight_decay": "set e.g. weight_decay: 0.0",
    "dpo_label_smoothing": "set e.g. dpo_label_smoothing: 0.1",
    "val_set_size": "set e.g. val_set_size: 0.05, or 0 to hold out nothing",
}
WRONG: list[tuple[str, Any, str]] = [
    *((key, value, "a number above 0") for key in ABOVE_ZERO for value in (0, -1, -1e-6, "0", "-1e-4", False)),
    *((key, value, "a number of 1 or more") for key in COUNTS for value in (0, -1, 0.5, "0", False)),
    *(("dpo_ld_alpha", value, "a number from 0 to 1") for value in (1.1, -0.1, "2")),
    *(("warmup_ratio", value, "a number from 0 to below 1") for value in (1, 1.5, -0.1, "2")),
    *((key, value, "a number of 0 or more") for key in ("warmup_steps", "weight_decay") for value in (-1, -0.01)),
    *(("dpo_label_smoothing", value, "a number from 0 to below 0.5") for value in (0.5, 1, -0.1)),
    *(("val_set_size", value, "a share of the rows from 0 to below 1") for value in (1, 1.0, 100, -0.1, "1.0")),
]
NO_NUMBERS = [math.nan, math.inf, -math.inf, "nan", "inf", "", "many", "1e-4x", 10**400]


def config(key: str, value: Any) -> dict[str, Any]:
    block, _, inner = key.rpartition(".")
    return {block: {inner: value}} if block else {inner: value}


def refusal(cfg: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_bounds(cfg)
    return str(caught.value)


def test_every_bound_is_tested() -> None:
    assert [bound.key for bound in BOUNDS] == list(REMEDIES)


@pytest.mark.parametrize(("key", "value", "words"), WRONG, ids=str)
def test_number_out_of_bounds(key: str, value: Any, words: str) -> None:
    assert refusal(config(key, value)) == f"{key}: {value!r} is not {words}; {REMEDIES[key]}."


@pytest.mark.parametrize("key", list(REMEDIES))
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:10])
def test_what_is_no_number_to_train_with(key: str, value: Any) -> None:
    assert refusal(config(key, value)).startswith(f"{key}: {value!r} is not a ")


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        dict.fromkeys(REMEDIES),
        {"learning_rate": "1e-4", "num_epochs": "0.5", "rl_beta": 5, "max_steps": "10"},
        {"warmup_ratio": 0, "warmup_steps": 0, "weight_decay": 0.0, "dpo_label_smoothing": 0.49},
        {"val_set_size": False, "micro_batch_size": 1, "gradient_accumulation_steps": 64},
        {"val_set_size": 0.999, "trl": {"beta": None}},
        {"trl": 3},
        {"learning_rate": [1], "max_steps": {"a": 1}},
    ],
    ids=["empty", "unset", "text", "zeros", "numbers", "shares", "no-block", "other-shapes"],
)
def test_numbers_that_pass(cfg: dict[str, Any]) -> None:
    """A value that is neither a number nor text is left to the host to refuse."""
    check_bounds(cfg)


def test_all_are_reported_at_once() -> None:
    lines = refusal({"num_epochs": 0, "trl": {"beta": -1}, "learning_rate": "fast"}).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["learning_rate:", "num_epochs:", "trl.beta:"]


def test_every_number_that_a_step_may_set_has_a_bound() -> None:
    assert set(OVERRIDES) - set(REMEDIES) == {
        "dpo_loss_type",
        "dpo_loss_weights",
        "lr_scheduler",
        "test_datasets",
    }


def test_one_weight_is_a_list_too() -> None:
    """The host asks for its length before it asks what it is, and ends with a TypeError."""
    assert refusal({"dpo_loss_weights": 1.0}) == (
        "dpo_loss_weights: 1.0 is not a list; set a weight for each of dpo_loss_type, e.g. [1.0]."
    )
    check_bounds({"dpo_loss_weights": [1.0]})
