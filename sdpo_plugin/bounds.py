"""Numbers of the host's config under which nothing is trained, or the host ends with an assertion of its own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugin.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """A key, the numbers that it takes, what they are in words, and what to set."""

    key: str
    holds: Callable[[float], bool]
    words: str
    remedy: str


def _above_zero(key: str, example: str) -> Bound:
    return Bound(key, lambda number: number > 0, "a number above 0", f"set e.g. {key}: {example}")


def _one_or_more(key: str, remedy: str) -> Bound:
    return Bound(key, lambda number: number >= 1, "a number of 1 or more", remedy)


BOUNDS = (
    _above_zero("learning_rate", "5.0e-7"),
    _above_zero("num_epochs", "1"),
    _one_or_more("max_steps", "remove max_steps to train num_epochs, or set the number of updates of each step"),
    _above_zero("rl_beta", "0.1"),
    _above_zero("dpo_beta", "0.1"),
    _above_zero("trl.beta", "0.1"),
    _one_or_more("micro_batch_size", "set e.g. micro_batch_size: 1"),
    _one_or_more("gradient_accumulation_steps", "set e.g. gradient_accumulation_steps: 1"),
    _one_or_more("sequence_len", "set e.g. sequence_len: 2048"),
    Bound("dpo_ld_alpha", lambda n: 0 <= n <= 1, "a number from 0 to 1", "set e.g. dpo_ld_alpha: 0.5"),
    Bound("warmup_ratio", lambda n: 0 <= n < 1, "a number from 0 to below 1", "set e.g. warmup_ratio: 0.1"),
    Bound("warmup_steps", lambda n: n >= 0, "a number of 0 or more", "set e.g. warmup_steps: 0"),
    Bound("weight_decay", lambda n: n >= 0, "a number of 0 or more", "set e.g. weight_decay: 0.0"),
    Bound(
        "dpo_label_smoothing",
        lambda n: 0 <= n < 0.5,
        "a number from 0 to below 0.5",
        "set e.g. dpo_label_smoothing: 0.1",
    ),
    Bound(
        "val_set_size",
        lambda n: 0 <= n < 1,
        "a share of the rows from 0 to below 1",
        "set e.g. val_set_size: 0.05, or 0 to hold out nothing",
    ),
)


def check_bounds(cfg: Mapping[str, Any]) -> None:
    """Refuse numbers that no step can be trained with, all of them in one message.

    Text is read as the host reads it: YAML 1.1 takes `1e-4` for text. What is neither is the host's to refuse.

    Raises:
        ConfigError: one line a key: the value seen, what is expected, and what to set.
    """
    found = []
    for bound in BOUNDS:
        value = _at(cfg, bound.key)
        if isinstance(value, int | float | str) and not bound.holds(_number(value)):
            found.append(f"{bound.key}: {value!r} is not {bound.words}; {bound.remedy}.")
    weights = cfg.get("dpo_loss_weights")
    if isinstance(weights, int | float):  # the host asks for its length before it asks what it is
        found.append(
            f"dpo_loss_weights: {weights!r} is not a list; set a weight for each of dpo_loss_type, e.g. [{weights!r}]."
        )
    if found:
        raise ConfigError("\n".join(found))


def _at(cfg: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        if not isinstance(cfg, Mapping):
            return None
        cfg = cfg.get(part)  # type: ignore[assignment]
    return cfg


def _number(value: float | str) -> float:
    """The number that is written; NaN, which no bound holds for, where there is none or it is not finite."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
