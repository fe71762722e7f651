"""Checkpoints of the host that a run can be trusted to go on from: sealed when whole, written in full before older
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
from transformers.trainer_utils import rotate_checkpoints

from sdpo_plugin.files import cannot_write
from sdpo_plugin.host import distributed
from sdpo_plugin.host.numbers import require_finite_weights
from sdpo_plugin.host.stopping import Stopped, StopRequest, shielded
from sdpo_plugin.host.tokens import TokenizingTrainer
from sdpo_plugin.sealed import read_seal, seal


class SealedCheckpoints(TokenizingTrainer):
    """A host trainer whose checkpoints carry a seal, and which stops at a checkpoint when it is asked to."""

    _about: Mapping[str, str] | None = None  # of the seal; None outside of a step
    _first_loss: float | None = None
    _stop: StopRequest | None = None
    _stopped_by = 0  # signal that every rank has agreed to stop for
    _earlier_seconds = 0.0
    _step_began = 0.0
    _is_over = False  # the checkpoint that is gone on from was written when the step had come to its end

    def begin_sealing(self, about: Mapping[str, str], checkpoint: Path | None) -> None:
        """Prepare a step: what its seals say, and what the checkpoint knows that it goes on from."""
        self._about, self._step_began = about, time.perf_counter()
        facts = {} if checkpoint is None else read_seal(checkpoint).facts
        self._first_loss = facts.get("first_loss")
        self._earlier_seconds = facts.get("seconds", 0.0)
        self._is_over = facts.get("is_over", False)

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
            self.accelerator.wait_for_everyone()
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

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The host would make one more update before it noticed that early stopping had ended the step."""
        if self._is_over:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


class StopAtStep(TrainerCallback):
    """Asks every rank after every update whether one of them was told to stop, and has a checkpoint written then."""

    def __init__(self, trainer: SealedCheckpoints) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """All ranks come here after the same update."""
        stop = self._trainer._stop
        signum = 0 if stop is None else stop.agreed()
        if signum:
            self._trainer._stopped_by = signum
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
