"""The config of one step: what a separate `rl: dpo` run of it would be given."""

import copy
from collections.abc import Sequence
from typing import Any

from axolotl.utils.dict import DictDefault
from transformers.trainer_utils import SchedulerType

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.data.read_errors import source_name
from sdpo_plugin.host.data.step_limits import apply_limits
from sdpo_plugin.losses import check_losses
from sdpo_plugin.steps_args import StepArgs

SCHEDULES = ("one_cycle", "rex", *(schedule.value for schedule in SchedulerType))  # the first two are Axolotl's own
# A step that sets the first key means it instead of the config's second one, which would win in the host.
DISPLACES = {
    "num_epochs": "max_steps",
    "warmup_ratio": "warmup_steps",
    "val_set_size": "test_datasets",
    "test_datasets": "val_set_size",
}


def source_cfg_of(name: str, cfg: DictDefault, step: StepArgs, entries: Sequence[DictDefault]) -> DictDefault:
    """The config of the run, with what the step sets for itself.

    Args:
        name: of the step.
        cfg: of the run.
        step: its block.
        entries: its data sets.

    Raises:
        ConfigError: it contradicts itself or what is supported.
    """
    source_cfg = copy.deepcopy(cfg)
    source_cfg.datasets = list(entries)
    overrides = step.overrides()
    for key in overrides:
        if DISPLACES.get(key) not in overrides:
            source_cfg[DISPLACES.get(key, key)] = None
    for key, value in overrides.items():
        source_cfg[key] = value
    if "rl_beta" in overrides and source_cfg.trl:
        source_cfg.trl = DictDefault({**source_cfg.trl, "beta": None})  # the run's, which the host would take first
    if "val_set_size" not in overrides and source_cfg.val_set_size is None:
        source_cfg.val_set_size = 0.0  # the host's default, and what "no evaluation" is recognised by
    if "num_epochs" in overrides and cfg.saves_per_epoch:
        source_cfg.save_steps = 1.0 / (cfg.saves_per_epoch * source_cfg.num_epochs)
    if "num_epochs" in overrides and cfg.evals_per_epoch:
        source_cfg.eval_steps = 1.0 / (cfg.evals_per_epoch * source_cfg.num_epochs)
    if step.from_hook and source_cfg.val_set_size:
        raise ConfigError(
            f"step {name}: val_set_size: {source_cfg.val_set_size!r} of the config would hold out rows that "
            "sdpo.before_step makes, and M_0 is evaluated on every held-out set before that; set val_set_size: 0 in "
            "this step, or test_datasets."
        )
    apply_limits(name, source_cfg, cfg, overrides)
    check_losses(f"step {name}", source_cfg)
    if source_cfg.lr_scheduler and source_cfg.lr_scheduler not in SCHEDULES:
        raise ConfigError(
            f"step {name}: lr_scheduler: {source_cfg.lr_scheduler!r} is no schedule of the host's; set one of "
            f"{', '.join(SCHEDULES)}."
        )
    if source_cfg.test_datasets:
        like = source_cfg.datasets if "test_datasets" in overrides else cfg.datasets
        source_cfg.test_datasets = _complete_test_entries(source_cfg.test_datasets, like)
    return source_cfg


def _complete_test_entries(tests: Sequence[Any], pool: Sequence[DictDefault]) -> list[DictDefault]:
    """The host reads field names of test entry i from training entry i; keep that where the test entry is silent."""
    completed = []
    for number, test in enumerate(tests):
        pattern = pool[number] if number < len(pool) else pool[-1]
        fields = {key: value for key, value in pattern.items() if key.startswith("field_") or key == "type"}
        completed.append(DictDefault({**fields, **{k: v for k, v in test.items() if v is not None}}))
    return completed


def describe_settings(step: StepArgs) -> dict[str, Any]:
    """The overrides of a step, for plan and report."""
    overrides = step.overrides()
    if "test_datasets" in overrides:
        overrides["test_datasets"] = [source_name(entry) for entry in overrides["test_datasets"]]
    return overrides
