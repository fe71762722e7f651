"""What a user sees of a running chain: bars that name their step, and loggers that begin each step afresh."""

from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from sdpo_plugin.plan import StepPlan


class StepProgress(TrainerCallback):
    """Writes "step 2/3 orca" before the host's training bar."""

    def __init__(self, callbacks: Iterable[TrainerCallback]) -> None:
        self.step: StepPlan | None = None
        self.num_steps = 0
        self._bars = [callback for callback in callbacks if isinstance(callback, ProgressCallback)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The host's progress callback stands before this one and has made its bar."""
        for callback in self._bars:
            if self.step is not None and callback.training_bar is not None:
                callback.training_bar.set_description(f"step {self.step.index}/{self.num_steps} {self.step.name}")


def restart_loggers(callbacks: Iterable[TrainerCallback]) -> None:
    """TensorBoard keeps the directory of the first training; each step gets a run of its own beside its checkpoints."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = None
