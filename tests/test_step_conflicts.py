"""Keys of `sdpo.steps` that would do nothing, or something else than is written."""

from typing import Any

import pytest

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.step_conflicts import SINCE, check_step_keys
from sdpo_plugin.steps_args import OVERRIDES, StepArgs

DATA = [{"path": "d.jsonl"}]


def steps(**keys: Any) -> list[StepArgs]:
    """Two steps, of which the second sets the keys."""
    return [StepArgs(datasets=DATA), StepArgs(datasets=DATA, **keys)]


def refusal(cfg: dict[str, Any], known: set[str], **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_step_keys(cfg, steps(**keys), known)
    return str(caught.value)


def test_a_host_without_the_key_is_named() -> None:
    assert refusal({}, set(OVERRIDES) - {"dpo_ld_alpha"}, dpo_ld_alpha=0.5) == (
        "sdpo.steps[1].dpo_ld_alpha: 0.5: the installed axolotl has no such key; install axolotl>=0.21, or remove it."
    )
    assert SINCE.keys() <= set(OVERRIDES)


@pytest.mark.parametrize("key", ["micro_batch_size", "gradient_accumulation_steps"])
def test_batch_size_decides_the_same(key: str) -> None:
    assert refusal({"batch_size": 32}, set(OVERRIDES), **{key: 2}) == (
        f"sdpo.steps[1].{key}: 2 and batch_size: 32 of the config decide the same thing; set "
        "gradient_accumulation_steps in place of batch_size."
    )


def test_what_passes() -> None:
    every = {"dpo_ld_alpha": 0.5, "micro_batch_size": 2, "gradient_accumulation_steps": 4}
    check_step_keys({"micro_batch_size": 4}, steps(**every), set(OVERRIDES))
    check_step_keys({"batch_size": 32, "micro_batch_size": 4}, steps(num_epochs=2), set(OVERRIDES))
