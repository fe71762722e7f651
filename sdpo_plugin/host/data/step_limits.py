"""A step's own batches and length of rows: what follows from them in its config, and where they cannot be had."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.step_conflicts import BATCHES


def apply_limits(name: str, cfg: DictDefault, run: DictDefault, overrides: Mapping[str, Any]) -> None:
    """Let the config of a step follow from its own batch sizes, as the host's would in a run of that step alone.

    `eval_batch_size` goes with `micro_batch_size` where both are the same in the config, as they are where it is not
    set.

    Args:
        name: of the step.
        cfg: its config, with its overrides; it is changed.
        run: that of the run.
        overrides: what the step sets for itself.

    Raises:
        ConfigError: rows may be longer than the model is loaded for; a DeepSpeed config says another batch size.
    """
    if cfg.sequence_len > run.sequence_len:
        raise ConfigError(
            f"step {name}: sequence_len: {cfg.sequence_len} is more than sequence_len: {run.sequence_len} of the "
            "config, for which the model is loaded; set the config's to the largest of all steps, and a smaller one in "
            "the others."
        )
    if not overrides.keys() & set(BATCHES):
        return
    _require_open(name, overrides, cfg)
    ranks = run.batch_size // (run.micro_batch_size * run.gradient_accumulation_steps)  # that the host multiplies by
    cfg.batch_size = ranks * cfg.micro_batch_size * cfg.gradient_accumulation_steps
    if run.eval_batch_size == run.micro_batch_size:
        cfg.eval_batch_size = cfg.micro_batch_size


def deepspeed_config(cfg: DictDefault) -> Any:
    """The content of the DeepSpeed config, wherever it lies."""
    if isinstance(cfg.deepspeed, str) and Path(cfg.deepspeed).is_file():
        return json.loads(Path(cfg.deepspeed).read_bytes())
    return cfg.deepspeed


def _require_open(name: str, overrides: Mapping[str, Any], cfg: DictDefault) -> None:
    """The host refuses a run whose batch is not that of its DeepSpeed config, and a step is such a run."""
    micro, accumulated, deepspeed = cfg.micro_batch_size, cfg.gradient_accumulation_steps, deepspeed_config(cfg)
    counted = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulated,
        "train_batch_size": micro * accumulated * cfg.world_size,
    }
    own = ", ".join(f"{key}: {overrides[key]}" for key in BATCHES if key in overrides)
    for key, count in counted.items():
        written = deepspeed.get(key, "auto") if isinstance(deepspeed, Mapping) else "auto"
        if written not in ("auto", count):
            raise ConfigError(
                f"step {name}: {own}, which makes {key} {count}, but the DeepSpeed config has {key}: {written!r} for "
                'all steps; set it to "auto" there.'
            )
