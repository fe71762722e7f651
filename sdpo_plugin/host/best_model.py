"""`load_best_model_at_end` and `early_stopping_patience`, in every step: under `rl: dpo` the host ignores both."""

from collections.abc import Sequence
from pathlib import Path

from axolotl.utils.dict import DictDefault
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.engines.ranks import gather

KEYS = ("early_stopping_patience", "load_best_model_at_end")


def keep_best_model(cfg: DictDefault, trainer: Trainer, sources: Sequence[LoadedSource]) -> None:
    """Set arguments and callback as the host does for its other trainers: early stopping implies the best model.

    Raises:
        ConfigError: a step has no held-out rows, or checkpoints are not written where the model is evaluated.
    """
    asked = ", ".join(f"{key}: {cfg[key]!r}" for key in KEYS if cfg.get(key))
    if not asked:
        return
    blind = [source.name for source in sources if not source.heldout]
    if blind:
        raise ConfigError(
            f"{asked} needs held-out rows in every step, and {', '.join(blind)} has none; "
            "set val_set_size or test_datasets."
        )
    args = trainer.args
    every_steps = args.save_strategy == IntervalStrategy.STEPS
    if (
        args.eval_strategy == IntervalStrategy.NO
        or args.save_strategy != args.eval_strategy
        or (every_steps and not _divides(args.eval_steps, args.save_steps))
    ):
        raise ConfigError(
            f"{asked} needs a checkpoint wherever the model is evaluated, but save_steps is {cfg.save_steps!r}, "
            f"save_strategy {args.save_strategy.value!r}, eval_steps {cfg.eval_steps!r} and eval_strategy "
            f"{args.eval_strategy.value!r}; set save_steps to a multiple of eval_steps, or both strategies to epoch."
        )
    args.load_best_model_at_end = True
    args.metric_for_best_model = cfg.metric_for_best_model or "loss"
    lower = args.metric_for_best_model.endswith("loss")
    args.greater_is_better = not lower if cfg.greater_is_better is None else bool(cfg.greater_is_better)
    if cfg.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(cfg.early_stopping_patience))


def require_best_seen_by_all(args: TrainingArguments) -> None:
    """Refuse machines with an output directory each: every rank loads the best checkpoint of a step.

    Args:
        args: of a step, whose directory rank 0 has made.

    Raises:
        OutputError: on every rank, where one of them does not see that directory.
    """
    if not args.load_best_model_at_end:
        return
    directory = Path(args.output_dir)
    seen = gather([directory.is_dir()])
    if not all(seen):
        raise OutputError(
            f"rank {seen.index(False)} does not see {directory}, of whose checkpoints every rank loads the best one: "
            f"the machines do not share output_dir: {str(directory.parent)!r}. Put it on a file system that all of "
            "them see, or remove load_best_model_at_end and early_stopping_patience, which implies it."
        )


def _divides(small: float | None, large: float) -> bool:
    """Whether ``large`` is a whole multiple of ``small``; both are steps, or both shares of a step's training."""
    if not small or (small < 1) != (large < 1):
        return False
    return abs(large / small - round(large / small)) < 1e-6
