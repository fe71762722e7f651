"""Progress of a chain: bars that name their step."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


class StepProgress(TrainerCallback):
    """Writes "step 2/3 orca" before the host's training bar."""

    def __init__(self, trainer: "StepwiseDPOTrainer") -> None:
        self._trainer = trainer
        self._bars = [bar for bar in trainer.callback_handler.callbacks if isinstance(bar, ProgressCallback)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The host's progress callback stands before this one and has made its bar."""
        step = self._trainer.step
        for callback in self._bars:
            if step is not None and callback.training_bar is not None:
                callback.training_bar.set_description(f"step {step.plan.index}/{step.num_steps} {step.plan.name}")
