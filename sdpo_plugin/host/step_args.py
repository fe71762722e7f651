"""The training arguments of one step: what the host would have built for a run on that step's data alone."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from axolotl.core.builders.base import TrainerBuilderBase
from axolotl.core.trainers.dpo import DPOStrategy
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.utils.dict import DictDefault
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

# An optimizer of the host's own, with what it is made with.
Optimizer = tuple[type, dict[str, Any]]

# A dataclass would turn these strings into enums in __post_init__, which must not run again in a live process:
# it resets the state of accelerate.
ENUMS = {"eval_strategy": IntervalStrategy, "save_strategy": SaveStrategy, "lr_scheduler_type": SchedulerType}


def step_args(
    base: AxolotlDPOConfig, cfg: DictDefault, total_num_steps: int, has_heldout: bool, output_dir: Path
) -> AxolotlDPOConfig:
    """A copy of ``base`` with everything that depends on the step.

    Args:
        base: the arguments that the host built, for the first step.
        cfg: the config of this step alone.
        total_num_steps: optimizer steps by the host's count for this step.
        has_heldout: whether the step has rows to evaluate on.
        output_dir: where the step's checkpoints go.
    """
    values: dict[str, Any] = {"eval_strategy": "no", "eval_on_start": False, "output_dir": str(output_dir)}
    builder = SimpleNamespace(cfg=cfg, eval_dataset=has_heldout)  # all that these methods of the builder read
    TrainerBuilderBase._configure_warmup_and_logging(builder, total_num_steps, values)
    TrainerBuilderBase._configure_save_and_eval_strategy(builder, values)
    values["alternate_lr_scheduler_type"] = None  # one_cycle and rex, which the step may not have and the run has
    TrainerBuilderBase._configure_scheduler(builder, values)
    values |= DPOStrategy.set_training_args_kwargs(cfg)
    if cfg.dpo_label_smoothing is not None:  # the host leaves 0 out, and a step may mean it where the run has another
        values["label_smoothing"] = cfg.dpo_label_smoothing
    values["max_steps"] = cfg.max_steps or total_num_steps
    values["num_train_epochs"] = cfg.num_epochs
    values["per_device_train_batch_size"] = cfg.micro_batch_size
    values["per_device_eval_batch_size"] = cfg.eval_batch_size
    for key in ("learning_rate", "weight_decay", "gradient_accumulation_steps"):
        if cfg.get(key) is not None:
            values[key] = cfg[key]
    if cfg.trl and cfg.trl.beta is not None:
        values["beta"] = cfg.trl.beta
    if cfg.rl_beta is not None and (not cfg.trl or cfg.trl.beta is None):
        values["beta"] = cfg.rl_beta
    if not has_heldout:
        values["eval_strategy"], values["eval_on_start"] = "no", False
    values["do_eval"] = values["eval_strategy"] != "no"
    args = copy.copy(base)
    for key, value in values.items():
        setattr(args, key, ENUMS[key](value) if key in ENUMS else value)
    return args


def step_optimizer(made: Optimizer | None, base: AxolotlDPOConfig, args: AxolotlDPOConfig) -> Optimizer | None:
    """What a step makes the host's own optimizer with: these read nothing of the arguments, but what the host has taken
    from them when it built the trainer.

    Args:
        made: by the host, for the run; None: one of transformers', which reads the arguments.
        base: the arguments that the host built.
        args: those of the step.

    Returns:
        The same, with the step's learning rate and weight decay, but for what `optim_args` says otherwise. A copy: the
        host takes some of it out as it makes an optimizer, which notes its own numbers in groups of parameters.
    """
    if made is None:
        return None
    kind, settings = made
    own = (("lr", base.learning_rate, args.learning_rate), ("weight_decay", base.weight_decay, args.weight_decay))
    settings = settings | {key: mine for key, of_run, mine in own if settings.get(key) == of_run}
    if "params" in settings:
        settings["params"] = [dict(group) for group in settings["params"]]
    return kind, settings
