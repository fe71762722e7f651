"""Keys of `sdpo.steps` that the host does not have, or that the rest of the config decides otherwise."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.steps_args import StepArgs

BATCHES = ("micro_batch_size", "gradient_accumulation_steps")
SINCE = {"dpo_ld_alpha": "axolotl>=0.21"}


def check_step_keys(cfg: Mapping[str, Any], steps: Sequence[StepArgs], known: Collection[str]) -> None:
    """Refuse what a step sets for itself where it would do nothing, or something else than is written.

    Args:
        cfg: the host's config.
        steps: `sdpo.steps`.
        known: the host's keys.

    Raises:
        ConfigError: it names the step, the key, its value and what to set.
    """
    for number, step in enumerate(steps):
        for key, value in step.overrides().items():
            said = f"sdpo.steps[{number}].{key}: {value!r}"
            if key not in known:
                raise ConfigError(f"{said}: the installed axolotl has no such key; install {SINCE[key]}, or remove it.")
            if key in BATCHES and cfg.get("batch_size"):
                raise ConfigError(
                    f"{said} and batch_size: {cfg['batch_size']!r} of the config decide the same thing; set "
                    "gradient_accumulation_steps in place of batch_size."
                )
