"""Losses that a step cannot have."""

import pytest

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.losses import check_losses


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"dpo_loss_type": ["sigmoid", "hinge"], "dpo_loss_weights": [1.0]},
            "step orca: dpo_loss_type: ['sigmoid', 'hinge'] has 2 losses and dpo_loss_weights: [1.0] has 1 weights; "
            "give each loss one weight.",
        ),
        (
            {"dpo_loss_type": ["sigmoid", "aot"], "dpo_use_weighting": True},
            "step orca: dpo_loss_type: ['sigmoid', 'aot'] and dpo_use_weighting: True exclude each other: aot sorts "
            "the pairs, and weights would go to others; remove one of them.",
        ),
        (
            {"dpo_loss_type": ["sigmoid", "sft"], "dpo_use_weighting": True},
            "step orca: dpo_loss_type: ['sigmoid', 'sft'] and dpo_use_weighting: True exclude each other: TRL weighs "
            "pairs, and its sft is one number of the whole batch; remove one of them.",
        ),
        (
            {"dpo_loss_type": ["exo_pair"]},
            "step orca: dpo_loss_type: ['exo_pair'] needs dpo_label_smoothing above 0, and it is None; "
            "set e.g. 1.0e-3.",
        ),
    ],
    ids=["weights", "sorted", "sft", "exo_pair"],
)
def test_losses_that_cannot_be_computed_are_refused(cfg: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_losses("step orca", cfg)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"dpo_loss_type": ["ipo"]},
        {"dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, 0.1]},
        {"dpo_loss_type": ["exo_pair"], "dpo_label_smoothing": 0.001},
    ],
    ids=["default", "ipo", "two", "exo_pair"],
)
def test_losses_that_are_fine(cfg: dict[str, object]) -> None:
    check_losses("step orca", cfg)


def test_loss_that_trl_does_not_have_is_refused_before_the_first_step() -> None:
    with pytest.raises(
        ConfigError, match=r"step orca: dpo_loss_type: 'sigmod' is no loss of TRL's; set one or more of si"
    ):
        check_losses("step orca", {"dpo_loss_type": ["ipo", "sigmod"], "dpo_loss_weights": [1, 1]})
