"""What a DeepSpeed config may not say."""

from typing import Any

import pytest

from sdpo_plugin.deepspeed_conflicts import check_deepspeed
from sdpo_plugin.errors import ConfigError

GATHERS = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_deepspeed(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "kind", "keys"),
    [
        ("optimizer", "AdamW", "optimizer:, learning_rate: …"),
        ("scheduler", "WarmupLR", "lr_scheduler:, warmup_steps: …"),
    ],
)
@pytest.mark.parametrize("stage", [0, 3])
def test_what_is_filled_in_once_for_the_run(section: str, kind: str, keys: str, stage: int) -> None:
    assert refusal({section: {"type": kind}, "zero_optimization": GATHERS | {"stage": stage}}) == (
        f"deepspeed: the config has a section {section!r} (type {kind!r}), which is filled in once, for the first "
        "step's length and learning rate, and would be wrong for every later step; remove it: Axolotl's own keys "
        f"({keys}) hold for each step."
    )


def test_a_section_without_a_type_is_named() -> None:
    assert "section 'optimizer' (type None)" in refusal({"optimizer": None})


@pytest.mark.parametrize("written", [False, None])
def test_zero_3_has_to_gather_the_weights_for_a_save(written: bool | None) -> None:
    key = "stage3_gather_16bit_weights_on_model_save"
    zero = {"stage": 3} if written is None else {"stage": 3, key: written}
    assert refusal({"zero_optimization": zero}) == (
        f"deepspeed: zero_optimization has {key}: {written!r}, so M_t could not be written after a step; set {key}: "
        "true in the DeepSpeed config."
    )


def test_weights_have_to_be_in_memory() -> None:
    zero = GATHERS | {"offload_param": {"device": "nvme", "nvme_path": "/local"}}
    assert refusal({"zero_optimization": zero}) == (
        "deepspeed: zero_optimization.offload_param has device: 'nvme', so that weights are on disk and not in memory, "
        "where they are looked through before M_t is written; set device: cpu there, or remove offload_param "
        "(offload_optimizer may stay on nvme)."
    )


@pytest.mark.parametrize(
    "zero",
    [
        GATHERS,
        {"stage": 3, "gather_16bit_weights_on_model_save": True},
        GATHERS | {"offload_param": {"device": "cpu"}},
        GATHERS | {"offload_param": None, "offload_optimizer": {"device": "nvme"}},
        {"stage": 2, "offload_param": {"device": "nvme"}},  # DeepSpeed reads it under ZeRO-3 alone
        {"stage": 1},
        None,
        "auto",
    ],
    ids=repr,
)
def test_what_a_chain_can_be_run_under(zero: object) -> None:
    check_deepspeed({"zero_optimization": zero, "train_batch_size": "auto"})
    check_deepspeed({})
