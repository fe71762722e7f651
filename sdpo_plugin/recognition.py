"""Which configs are ours, told from their keys: where the plugin is installed, the host asks it about every config.

Small, and imports as little: the answer is no for most configs, and costs their start-up nothing.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from sdpo_plugin.plugin_name import is_listed
from sdpo_plugin.text import is_close, plain

BLOCK = "sdpo"
RL = "sdpo"
TRAINER_CLS = "sdpo_plugin.host.trainer.StepwiseDPOTrainer"


def concerns_us(cfg: Mapping[str, Any], known_rl: Container[str]) -> bool:
    """Whether there is anything to do or to refuse: the plugin is listed, or the config means `rl: sdpo`.

    Args:
        cfg: the config, before it is validated or after.
        known_rl: the values of `rl` that the host has.
    """
    rl = cfg.get("rl")
    return (
        is_listed(cfg.get("plugins"))
        or rl == RL
        or cfg.get(BLOCK) is not None
        or is_nearly_sdpo(rl, known_rl)
        or is_sdpo(cfg)
        or _asks_for_answers_of_a_run(cfg)
    )


def is_sdpo(cfg: Mapping[str, Any]) -> bool:
    """Whether this config, after ``register``, is one of ours. The plugin manager keeps the plugins of earlier ones."""
    return bool(cfg.get("trainer_cls") == TRAINER_CLS and cfg.get("rl") == "dpo")


def is_nearly_sdpo(rl: Any, known: Container[str]) -> bool:
    """Whether a value of `rl` is none that the host has, and nearly ours."""
    return isinstance(rl, str) and rl != RL and rl not in known and is_close(plain(rl).replace("_", ""), RL)


def _asks_for_answers_of_a_run(cfg: Mapping[str, Any]) -> bool:
    """`axolotl inference`, which takes `rl` out of the config, with the file of a run."""
    out = cfg.get("output_dir")
    return bool(cfg.get("inference")) and isinstance(out, str) and (Path(out) / BLOCK).is_dir()
