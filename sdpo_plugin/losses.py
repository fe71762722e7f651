"""Losses of the trainer: what a step may have, refused before the first one trains."""

from collections.abc import Mapping
from typing import Any

from sdpo_plugin.errors import ConfigError

# TRL 1.9 looks a loss up when it computes it: a typo in the last step would end the run after all steps before it.
LOSS_TYPES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
SORTING = ("aot", "aot_unpaired")


def check_losses(step: str, cfg: Mapping[str, Any]) -> None:
    """Refuse losses of a step with which the trainer would end only when the step begins.

    Raises:
        ConfigError: a loss is unknown, or cannot be weighted by pair; as many weights as losses, or a smoothing for
            exo_pair, are missing.
    """
    losses, weights = cfg.get("dpo_loss_type") or ["sigmoid"], cfg.get("dpo_loss_weights")
    unknown = [name for name in losses if name not in LOSS_TYPES]
    if unknown:
        raise ConfigError(
            f"{step}: dpo_loss_type: {unknown[0]!r} is no loss of TRL's; set one or more of {', '.join(LOSS_TYPES)}."
        )
    if weights is not None and len(weights) != len(losses):
        raise ConfigError(
            f"{step}: dpo_loss_type: {losses} has {len(losses)} losses and dpo_loss_weights: {weights} has "
            f"{len(weights)} weights; give each loss one weight."
        )
    if "sft" in losses and cfg.get("dpo_use_weighting"):
        raise ConfigError(
            f"{step}: dpo_loss_type: {losses} and dpo_use_weighting: True exclude each other: TRL weighs pairs, and "
            "its sft is one number of the whole batch; remove one of them."
        )
    sorting = [name for name in losses if name in SORTING]
    if sorting and cfg.get("dpo_use_weighting"):
        raise ConfigError(
            f"{step}: dpo_loss_type: {losses} and dpo_use_weighting: True exclude each other: {sorting[0]} sorts the "
            "pairs, and weights would go to others; remove one of them."
        )
    if "exo_pair" in losses and not cfg.get("dpo_label_smoothing"):
        raise ConfigError(
            f"{step}: dpo_loss_type: {losses} needs dpo_label_smoothing above 0, and it is "
            f"{cfg.get('dpo_label_smoothing')!r}; set e.g. 1.0e-3."
        )
