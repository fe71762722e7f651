"""Checkpoints of the host that a run can be trusted to resume from: sealed when whole, written in full before older
ones go, and resumed with everything that decides how the step ends."""

import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from sdpo_plugin.files import cannot_write
from sdpo_plugin.host import distributed
from sdpo_plugin.host.numbers import require_finite_weights
from sdpo_plugin.host.stopping import Stopped, StopRequest
from sdpo_plugin.host.tokens import TokenizingTrainer
from sdpo_plugin.host.workers import shielded
from sdpo_plugin.sealed import read_seal, seal


class EvaluationLeft(Exception):  # noqa: N818 - no error: the evaluation is made when the run is resumed
    """An evaluation was left in the middle, because the run was asked to stop: it may take longer than a launcher
    waits before it kills."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class SealedCheckpoints(TokenizingTrainer):
    """A host trainer whose checkpoints carry a seal, and which stops at a checkpoint when it is asked to."""

    control: TrainerControl  # the host's

    _about: Mapping[str, str] | None = None  # of the seal; None outside of a step
    _first_loss: float | None = None
    _stop: StopRequest | None = None
    _stopped_by = 0  # signal that every rank has agreed to stop for
    _earlier_seconds = 0.0
    _step_began = 0.0
    _is_over = False  # the checkpoint that is resumed was written when the step had come to its end
    _owed: Mapping[str, bool] | None = None  # an evaluation that was left, and whether a checkpoint follows it
    _save_was_due = False  # where the run was asked to stop, without that
    _resumed: Path | None = None

    def begin_sealing(self, about: Mapping[str, str], checkpoint: Path | None) -> None:
        """Prepare a step: what its seals say, and what the checkpoint knows that it goes on from."""
        self._about, self._step_began = about, time.perf_counter()
        facts = {} if checkpoint is None else read_seal(checkpoint).facts
        self._first_loss = facts.get("first_loss")
        self._earlier_seconds = facts.get("seconds", 0.0)
        self._is_over = facts.get("is_over", False)
        self._owed, self._resumed = facts.get("owed"), checkpoint

    def end_sealing(self) -> None:
        """The step is trained."""
        self._about = None

    def get_train_dataloader(self) -> Any:
        """The host's, with workers that outlive a signal to the process group."""
        return shielded(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The same for evaluations."""
        return shielded(super().get_eval_dataloader(eval_dataset))

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> None:
        """The host's checkpoint, then its seal, and only then the removal of older ones."""
        if self._about is None:
            super()._save_checkpoint(model, trial, **kwargs)
            return
        signum = self._stopped_by
        directory = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        require_finite_weights(self, f"checkpoint {directory}")
        limit, only_model = self.args.save_total_limit, self.args.save_only_model
        # A checkpoint of the same name is not whole, or it would have been gone on from.
        distributed.on_rank_0(lambda: shutil.rmtree(directory, ignore_errors=True))
        self.args.save_total_limit = None
        self.args.save_only_model = only_model and not signum  # one that is asked for has to be good for going on
        with written(directory):
            super()._save_checkpoint(model, trial, **kwargs)
            distributed.wait_for_all()
            if not self.args.save_only_model:
                distributed.on_rank_0(lambda: self._seal(directory))
        self.args.save_total_limit, self.args.save_only_model = limit, only_model
        if self.args.should_save:
            rotate_checkpoints(str(directory.parent), limit, self.state.best_model_checkpoint, use_mtime=True)
        if signum:
            self.callback_handler.on_train_end(self.args, self.state, self.control)  # loggers write what they hold
            raise Stopped(signum, f"update {self.state.global_step:,} of this step is in {directory}")

    def _seal(self, directory: Path) -> None:
        assert self._about is not None
        facts = {
            "first_loss": self._first_loss,
            "seconds": self._earlier_seconds + time.perf_counter() - self._step_began,
            "is_over": bool(self.control.should_training_stop),
            "owed": None if self._owed is None else dict(self._owed),
        }
        seal(directory, self._about, facts)

    def _load_callback_state(self) -> None:
        """Going on from a checkpoint: what the host restores of its state only on request, and of its place."""
        super()._load_callback_state()
        if self._about is None:
            return
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(kept, dict):
                for name, value in kept["attributes"].items():
                    setattr(callback, name, value)
        self.state.compute_steps(self.args, self.state.max_steps)  # save_steps and logging_steps may have changed
        if self.state.best_model_checkpoint:  # the output directory may have been moved
            best = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name
            self.state.best_model_checkpoint = str(best)

    def _run_epoch(self, model: Any, *args: Any, trial: Any = None, **kwargs: Any) -> None:
        """The host would make one more update before it noticed that early stopping had ended the step."""
        self._make_owed_evaluation(model, trial)
        if self._is_over or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(model, *args, trial=trial, **kwargs)

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        """A step that is resumed after its last update has no epoch left to run."""
        self._make_owed_evaluation(self.model_wrapped, trial)
        return super()._finalize_training(trial, *args)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """A batch of an evaluation, unless the run has been asked to stop; every rank asks before every batch."""
        if self._about is not None and self._stop is not None:
            signum = self._stopped_by or self._stop.agreed()
            if signum:
                raise EvaluationLeft(signum)
        return super().prediction_step(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """The host's, which evaluates before it saves. A run that has to stop leaves the evaluation and saves: the
        random state is then that after an evaluation, which draws once, when its batches are set up."""
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationLeft as left:
            self._owed = {"saves": self._save_was_due if self._stopped_by else self.control.should_save}
            self._stopped_by = left.signum
            self._save_checkpoint(model, trial)

    def _make_owed_evaluation(self, model: Any, trial: Any) -> None:
        """What the checkpoint that is resumed was to be followed by, had the run not been asked to stop."""
        if self._owed is None:
            return
        saves = self._owed["saves"]
        is_best = self._determine_best_metric(self._evaluate(trial, None), trial)
        self._owed = None
        self._load_rng_state(str(self._resumed))
        if is_best if self.args.save_strategy == SaveStrategy.BEST else saves:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)


class StopAtStep(TrainerCallback):
    """Asks every rank after every update whether one of them was told to stop, and has a checkpoint written then."""

    def __init__(self, trainer: SealedCheckpoints) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """All ranks come here after the same update."""
        stop = self._trainer._stop
        signum = 0 if stop is None else stop.agreed()
        if signum:
            self._trainer._stopped_by, self._trainer._save_was_due = signum, control.should_save
            control.should_save = True


@contextmanager
def written(directory: Path) -> Iterator[None]:
    """Say where a write failed, and that nothing before it is lost.

    Raises:
        OutputError: the host could not write: the disk is full, a quota is used up, a file grew too large.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_torchs_writer(error):
            raise
        raise cannot_write(directory, error) from error


def _is_torchs_writer(error: RuntimeError) -> bool:
    """`torch.save` says in many ways that it cannot write, and each is a plain RuntimeError; where it was is one."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).parts[-2:] == ("torch", "serialization.py")
