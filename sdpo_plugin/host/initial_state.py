"""What a separate run would begin with, given to the trainer before each step: its state, and its optimizer."""

import copy
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl
from transformers.trainer_callback import ExportableState

from sdpo_plugin.host.step_args import step_optimizer

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


class InitialState:
    """Counters and averages (metrics not logged yet, early stopping, fp16's loss scale) as the run began with them, and
    the host's own optimizer, which it settles for the run."""

    def __init__(self, trainer: "StepwiseDPOTrainer") -> None:
        stateful = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExportableState)]
        self._callbacks: list[tuple[Any, dict[str, Any]]] = [(cb, copy.deepcopy(cb.state())) for cb in stateful]
        scaler = trainer.accelerator.scaler
        self._scaler = None if scaler is None else copy.deepcopy(scaler.state_dict())
        self._optimizer, self._args = trainer.optimizer_cls_and_kwargs, trainer.args

    def restore(self, trainer: "StepwiseDPOTrainer") -> None:
        """Let the next step, whose arguments the trainer has by now, begin as the first one did."""
        trainer.optimizer_cls_and_kwargs = step_optimizer(self._optimizer, self._args, trainer.args)
        for metrics in trainer._metrics.values():
            metrics.clear()
        trainer._total_train_tokens = 0
        trainer.control = TrainerControl()
        for callback, state in self._callbacks:
            for name, value in state["attributes"].items():
                setattr(callback, name, copy.deepcopy(value))
        if self._scaler is not None:
            trainer.accelerator.scaler.load_state_dict(self._scaler)
