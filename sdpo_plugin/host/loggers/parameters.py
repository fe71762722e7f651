"""The parameters of every step, for loggers: beside the training arguments, which are the run's."""

from collections.abc import Callable
from typing import Any

from sdpo_plugin.host.loggers.logger import Value
from sdpo_plugin.plan import Plan, StepPlan

OF_THE_PLAN = ("name", "num_rows", "num_heldout", "num_optimizer_steps", "reference", "policy_init")
OF_THE_ARGS = ("learning_rate", "num_train_epochs", "warmup_steps", "weight_decay", "beta", "label_smoothing")


def step_parameters(plan: Plan, args_of: Callable[[StepPlan], Any]) -> dict[str, Value]:
    """What each step is and may set for itself, e.g. "sdpo/step_2/learning_rate": 5e-7.

    Args:
        plan: the steps.
        args_of: the training arguments of a step.
    """
    parameters: dict[str, Value] = {"sdpo/num_steps": len(plan.steps)}
    for step in plan.steps:
        args = args_of(step)
        own = {key: getattr(step, key) for key in OF_THE_PLAN} | {key: getattr(args, key) for key in OF_THE_ARGS}
        if step.refresh is not None:
            own["reference_refresh"] = str(step.refresh)
        own["loss_type"], own["lr_scheduler"] = ",".join(args.loss_type), str(args.lr_scheduler_type.value)
        parameters |= {f"sdpo/step_{step.index}/{key}": value for key, value in own.items()}
    return parameters
