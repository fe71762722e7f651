"""`load_best_model_at_end` and `early_stopping_patience`, in every step: under `rl: dpo` the host ignores both."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from axolotl.utils.dict import DictDefault
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import IntervalStrategy

from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.engines.ranks import gather, on_rank_0
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.paths import RunDir

KEYS = ("early_stopping_patience", "load_best_model_at_end")


def keep_best_model(cfg: DictDefault, trainer: Trainer, sources: Sequence[LoadedSource]) -> None:
    """Set arguments and callback as the host does for its other trainers: early stopping implies the best model.

    Raises:
        ConfigError: a step has no held-out rows, or checkpoints are not written where the model is evaluated.
        OutputError: the machines do not share the output directory.
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
    _require_shared(RunDir(Path(cfg.output_dir)))


def _require_shared(run: RunDir) -> None:
    """Refuse machines with an output directory each, of which one alone would load the best checkpoint of a step.

    A file of a random name is looked for: directories may have been left on every machine by another run.

    Raises:
        OutputError: on every rank, where one of them does not see what rank 0 writes.
    """
    name = on_rank_0(lambda: _made(run.folder))
    seen = gather([(run.folder / name).exists()])
    on_rank_0(lambda: (run.folder / name).unlink(missing_ok=True))
    if not all(seen):
        raise OutputError(
            f"rank {seen.index(False)} does not see what rank 0 writes into {run.folder}, and every rank loads the "
            f"best checkpoint of a step: the machines do not share output_dir: {str(run.root)!r}. Put it on a file "
            "system that all of them see, or remove load_best_model_at_end and early_stopping_patience, which implies "
            "it."
        )


def _made(folder: Path) -> str:
    """The name of a new, empty file, which the run removes as one that was half written, should it die now."""
    with explaining_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file, path = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(file)
    return Path(path).name


def _divides(small: float | None, large: float) -> bool:
    """Whether ``large`` is a whole multiple of ``small``; both are steps, or both shares of a step's training."""
    if not small or (small < 1) != (large < 1):
        return False
    return abs(large / small - round(large / small)) < 1e-6
