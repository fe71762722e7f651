"""What a DeepSpeed config may not say under `rl: sdpo`, before hours are spent."""

from collections.abc import Mapping
from typing import Any

from sdpo_plugin.errors import ConfigError

# DeepSpeed reads both; the host's own ZeRO-3 configs use the second.
GATHER_KEYS = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")
OWN_KEYS = {"optimizer": "optimizer:, learning_rate:", "scheduler": "lr_scheduler:, warmup_steps:"}


def check_deepspeed(config: Mapping[str, Any]) -> None:
    """Refuse a DeepSpeed config that a chain cannot be run under.

    Args:
        config: its content. What is no block in it is DeepSpeed's to refuse.

    Raises:
        ConfigError: an optimizer or scheduler of its own; ZeRO-3 without gathering the weights for a save, or with
            weights on disk.
    """
    for section, keys in OWN_KEYS.items():
        if section in config:
            kind = _block(config, section).get("type")
            raise ConfigError(
                f"deepspeed: the config has a section {section!r} (type {kind!r}), which is filled in once, for the "
                "first step's length and learning rate, and would be wrong for every later step; remove it: Axolotl's "
                f"own keys ({keys} …) hold for each step."
            )
    zero = _block(config, "zero_optimization")
    if zero.get("stage") != 3:
        return
    if not any(zero.get(key) for key in GATHER_KEYS):
        raise ConfigError(
            f"deepspeed: zero_optimization has {GATHER_KEYS[0]}: {zero.get(GATHER_KEYS[0])!r}, so M_t could not be "
            f"written after a step; set {GATHER_KEYS[0]}: true in the DeepSpeed config."
        )
    if _block(zero, "offload_param").get("device") == "nvme":
        raise ConfigError(
            "deepspeed: zero_optimization.offload_param has device: 'nvme', so that weights are on disk and not in "
            "memory, where they are looked through before M_t is written; set device: cpu there, or remove "
            "offload_param (offload_optimizer may stay on nvme)."
        )


def _block(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
