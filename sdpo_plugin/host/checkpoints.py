"""Checkpoints that a run can be resumed from: sealed when whole, written in full before older ones go, and resumed with
everything that decides how the step ends."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl.utils.callbacks.dynamic_checkpoint import DynamicCheckpointCallback
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.shares import written_by_all
from sdpo_plugin.host.engines.weights import load_adapter
from sdpo_plugin.host.forward.finite import require_finite_weights
from sdpo_plugin.host.step_under_way import EvaluationLeft, StepUnderWay
from sdpo_plugin.host.stopping import Stopped
from sdpo_plugin.host.write_errors import explaining_host_errors
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.sealed import seal

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


def save_sealed(trainer: "StepwiseDPOTrainer", step: StepUnderWay, save: Callable[[], None]) -> None:
    """The host's checkpoint, then its seal, and only then the removal of older ones.

    Args:
        trainer: whose checkpoint it is.
        step: under way.
        save: the host's own, which would remove older ones first.

    Raises:
        TrainingError: a weight is not finite.
        OutputError: it could not be written.
        Stopped: the run was asked to stop, and the checkpoint was written for that.
    """
    directory = Path(trainer._get_output_dir(trial=None)) / f"checkpoint-{trainer.state.global_step}"
    require_finite_weights(trainer, f"checkpoint {directory}")
    limit, only_model = trainer.args.save_total_limit, trainer.args.save_only_model
    # One of the same name is not whole, or the step would have been resumed from it; or it was to be followed by the
    # evaluation that is left now, as this one says.
    ranks.on_rank_0(lambda: shutil.rmtree(directory, ignore_errors=True))
    trainer.args.save_total_limit = None
    trainer.args.save_only_model = only_model and not step.stopped_by  # one that is asked for is to be resumed from
    with explaining_host_errors(directory):
        save()
        ranks.wait_for_all()
        if not trainer.args.save_only_model:
            if step.moving is not None:
                step.moving.save(directory)
            facts = step.facts(is_over=bool(trainer.control.should_training_stop))
            known = written_by_all(directory)
            ranks.on_rank_0(lambda: seal(directory, step.training.about, facts, known=known))
    trainer.args.save_total_limit, trainer.args.save_only_model = limit, only_model
    best = trainer.state.best_model_checkpoint
    if limit is not None:
        ranks.on_rank_0(lambda: rotate_checkpoints(str(directory.parent), limit, best, use_mtime=True))
    if step.stopped_by:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # loggers write their last
        raise Stopped(step.stopped_by, f"update {trainer.state.global_step:,} of this step is in {directory}")


def wait_for_weights(trainer: "StepwiseDPOTrainer") -> None:
    """Come back when rank 0 has written the weights of a checkpoint, however long that takes: the host's own wait,
    which comes next, ends a rank after `ddp_timeout`."""
    if trainer.step is not None:
        ranks.wait_for_all()


def restore_callbacks(trainer: "StepwiseDPOTrainer", step: StepUnderWay) -> None:
    """Give callbacks their state in the checkpoint that ``step`` is resumed from, which the host does only on request,
    and the step its place.

    Raises:
        OutputError: a rank does not see the best checkpoint that it is to load.
    """
    for callback in trainer.callback_handler.callbacks:
        kept = trainer.state.stateful_callbacks.get(type(callback).__name__)
        if isinstance(callback, ExportableState) and isinstance(kept, dict):
            for name, value in kept["attributes"].items():
                setattr(callback, name, value)
    trainer.state.compute_steps(trainer.args, trainer.state.max_steps)  # save_steps, logging_steps may have changed
    # The output directory may have been moved; a host may forget a best checkpoint that is not where it was.
    assert step.training.checkpoint is not None, "the host loads the state of callbacks of a checkpoint"
    saved = TrainerState.load_from_json(str(step.training.checkpoint / TRAINER_STATE_NAME))
    if saved.best_model_checkpoint is not None:
        best = Path(trainer.args.output_dir) / Path(saved.best_model_checkpoint).name
        if ranks.on_rank_0(best.is_dir):
            if trainer.args.load_best_model_at_end:
                ranks.require_seen_by_all(best, "holds the best model of the step so far", best.parent.parent)
            trainer.state.best_model_checkpoint = str(best)


def load_whole_adapter(trainer: "StepwiseDPOTrainer", directory: Path) -> None:
    """Read an adapter that FSDP2 has sharded from the file of its own that a checkpoint holds, where it is gathered.

    Beside that file accelerate 1.13 keeps rank 0's shard alone, and gives it to rank 0 alone.
    """
    model = trainer.model
    if trainer.is_fsdp_enabled and isinstance(model, PeftModel) and (directory / SAFETENSORS_WEIGHTS_NAME).exists():
        load_adapter(model, directory)


def leave_evaluation(
    trainer: "StepwiseDPOTrainer", step: StepUnderWay, left: EvaluationLeft, model: Any, trial: Any
) -> None:
    """Save where an evaluation after an update was left; it is owed when the run is resumed.

    The random state is then that after an evaluation, which draws once, when its batches are set up.
    """
    step.owed = {"saves": step.save_was_due if step.stopped_by else trainer.control.should_save}
    step.stopped_by = left.signum
    trainer._save_checkpoint(model, trial)


def make_owed_evaluation(trainer: "StepwiseDPOTrainer", step: StepUnderWay, trial: Any) -> None:
    """The evaluation that the checkpoint was to be followed by, had the run not been asked to stop, and its save."""
    if step.owed is None:
        return
    saves = step.owed["saves"]
    is_best = trainer._determine_best_metric(trainer._evaluate(trial, None), trial)
    step.owed = None
    trainer._load_rng_state(str(step.training.checkpoint))
    if is_best if trainer.args.save_strategy == SaveStrategy.BEST else saves:
        assert step.training.checkpoint is not None, "a checkpoint owes the evaluation"
        if step.training.checkpoint.resolve().parent != Path(trainer.args.output_dir).resolve():  # a copy of it
            trainer._save_checkpoint(trainer.model_wrapped, trial)
        elif is_best:  # it stands; were it written anew, a death meanwhile would leave the step without it
            trainer.state.best_model_checkpoint = str(step.training.checkpoint)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


@contextmanager
def directory_of_step(directory: Path) -> Iterator[None]:
    """It stands while the step is trained: profilers and other callbacks write there, and a separate run has made it
    when its trainer is built. One that stays empty goes again.

    Raises:
        OutputError: on every rank, where rank 0 cannot make it.
    """
    with explaining_write_errors(directory):
        ranks.on_rank_0(lambda: directory.mkdir(parents=True, exist_ok=True))
    yield
    ranks.wait_for_all()  # the host looks for checkpoints in it on every rank, as the last thing of a training
    with suppress(OSError):  # something is in it
        ranks.on_rank_0(directory.rmdir)


def look_in_run_directory(trainer: "StepwiseDPOTrainer") -> None:
    """Let `dynamic_checkpoint` look for its file in output_dir, where the host tells the user to put it: the arguments
    of a step name that step's directory."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, DynamicCheckpointCallback) and callback.enabled:
            callback.trigger_filename = str(Path(trainer.args.output_dir, callback.trigger_filename).absolute())


class StopAtUpdate(TrainerCallback):
    """Asks every rank after every update whether one of them was told to stop, and has a checkpoint written then."""

    def __init__(self, trainer: "StepwiseDPOTrainer") -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """All ranks come here after the same update."""
        step = self._trainer.step
        signum = 0 if step is None else step.stop.agreed()
        if step is not None and signum:
            step.stopped_by, step.save_was_due = signum, control.should_save
            control.should_save = True
