"""One model evaluated by lm-eval while it is in memory: what is left to do of it, done on all ranks, and recorded."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.engine import is_sharded, ready_model
from sdpo_plugin.host.engines.fsdp import generating
from sdpo_plugin.host.engines.memory import free_memory
from sdpo_plugin.host.evaluation.attempt import attempt
from sdpo_plugin.host.evaluation.tasks import run_task
from sdpo_plugin.host.evaluation.unchanged import unchanged
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.lm_eval_args import LMEvalArgs, TaskArgs
from sdpo_plugin.run_dir.evaluations import Entry, Evaluation, TaskResult, load_evaluation, save_evaluation
from sdpo_plugin.run_dir.paths import RunDir

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

    from sdpo_plugin.host.evaluation.shared import SharedLM

LOG = logging.getLogger("axolotl.sdpo_plugin")


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated.

    Attributes:
        model: "M_0" … "M_T".
        run_id: of the run.
        is_end: M_0 or M_T, which are evaluated with `steps: last` too.
    """

    model: str
    run_id: str
    is_end: bool


def evaluate(
    trainer: "DPOTrainer",
    setup: RunSetup,
    evaluated: Evaluated,
    check: Callable[[], None],
    other: PreTrainedModel | None = None,
) -> None:
    """Have lm-eval evaluate the policy as it stands on what this run has no results of, and record what comes of it.

    An error of the harness, a task or the model is recorded in place of results. All ranks call it.

    Args:
        trainer: holds the policy.
        setup: config and run directory.
        evaluated: what the policy is.
        check: called before every batch, on every rank; it may end the run.
        other: a model in place of the policy.

    Raises:
        Stopped: by ``check``, the run was asked to stop.
    """
    args = setup.block.lm_eval
    if args is None or not (evaluated.is_end or args.steps == "all"):
        return
    record = ranks.on_rank_0(partial(_so_far, setup.run, evaluated, args))
    left = [entry for entry in args.entries if not record.has(entry.task, _settings(args, entry))]
    if not left:
        return
    try:
        model = trainer.model if other is None else other
        with unchanged(model), ready_model(trainer, other) as ready, generating(model):
            lm, error = _model_for(trainer, ready, setup, check)
            for entry in left:
                record = _recorded(setup.run, record, args, entry, partial(_run, lm, args, entry, error))
    finally:
        free_memory()


def _so_far(run: RunDir, evaluated: Evaluated, args: LMEvalArgs) -> Evaluation:
    """What an earlier process of this run has found of the model, as far as it can be read."""
    every_model, lm_eval_version = args.steps == "all", version("lm_eval")
    try:
        earlier = load_evaluation(run.lm_eval(evaluated.model), evaluated.run_id).entries
    except (OSError, ValueError):
        earlier = {}
    return Evaluation(evaluated.run_id, evaluated.model, lm_eval_version, every_model, earlier)


def _settings(args: LMEvalArgs, entry: TaskArgs) -> dict[str, Any]:
    return {
        "num_fewshot": entry.num_fewshot,
        "limit": entry.limit,
        "apply_chat_template": args.apply_chat_template,
    }


def _model_for(
    trainer: "DPOTrainer", ready: Any, setup: RunSetup, check: Callable[[], None]
) -> tuple["SharedLM | None", str | None]:
    """The model as lm-eval takes it, on every rank, or why a rank cannot make one of it."""
    args = setup.block.lm_eval
    assert args is not None
    needs_all = is_sharded(trainer) or bool(setup.cfg.tiled_mlp)  # whose ranks agree on a number of tiles in each layer

    def make() -> "SharedLM":
        from sdpo_plugin.host.evaluation.shared import SharedLM  # lm-eval takes seconds to import

        model = ready.module if trainer.is_deepspeed_enabled else ready
        device: torch.device = trainer.accelerator.device
        return SharedLM(model, trainer.processing_class, args.batch_size, device, needs_all, check)

    lm, error = attempt(make)
    errors = [text for text in ranks.gather([error]) if text is not None]
    return (None, errors[0]) if errors else (lm, None)


def _run(lm: "SharedLM | None", args: LMEvalArgs, entry: TaskArgs, error: str | None) -> tuple[Any, str | None]:
    """Results and error of one entry: on rank 0, where the harness runs; the others serve it."""
    if lm is None:
        return None, error
    if ranks.place()[0] != 0:
        lm.serve()
        return None, None
    found = attempt(partial(run_task, lm, args, entry))
    lm.let_go()
    return found


def _recorded(
    run: RunDir,
    record: Evaluation,
    args: LMEvalArgs,
    entry: TaskArgs,
    action: Callable[[], tuple[Mapping[str, TaskResult] | None, str | None]],
) -> Evaluation:
    """Do one entry, tell of it, and write it down at once: what a run has found is not lost with its process."""
    start = time.perf_counter()
    results, error = action()
    done = Entry(_settings(args, entry), dict(results or {}), time.perf_counter() - start, error)
    record = record.with_entry(entry.task, done)

    ranks.on_rank_0(partial(_keep, run, record, entry.task))
    return record


def _keep(run: RunDir, record: Evaluation, name: str) -> None:
    """Write and tell. What cannot be written is told all the same: the training is worth more."""
    _tell(record.model, name, record.entries[name])
    _, error = attempt(partial(save_evaluation, run, record))
    if error is not None:
        path = run.lm_eval(record.model)
        LOG.warning("%s could not be written, and the run goes on: %s", path, error)


def _tell(model: str, name: str, entry: Entry) -> None:
    if entry.error is not None:
        LOG.warning("lm-eval failed on %s with %s, and the run goes on: %s", name, model, entry.error)
        return
    results = {name: entry.results[name]} if name in entry.results else entry.results
    metrics = ", ".join(
        f"{metric} {value.value:.3f}" + ("" if value.stderr is None else f" ± {value.stderr:.3f}")
        for result in results.values()
        for metric, value in result.metrics.items()
        if value.value is not None
    )
    LOG.info("lm-eval of %s: %s: %s (%.1f s)", model, name, metrics or "no number", entry.seconds)
