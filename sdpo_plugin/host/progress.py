"""Progress of a chain: bars that name their step and say what the chain has to go, the same in the log and on disk."""

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from sdpo_plugin.report.forecast import Forecast, forecast
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.progress import Progress, write_progress
from sdpo_plugin.text import duration

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

LOG = logging.getLogger("axolotl.sdpo_plugin")
SECONDS_BETWEEN = 10.0  # of what is told while a step trains


class StepProgress(TrainerCallback):
    """Writes "step 2/3 orca" before the host's training bar, and how long the chain has to go behind it.

    Args:
        trainer: which trains the steps.
        run: where its ledger is, and where it tells of its progress.
    """

    def __init__(self, trainer: "StepwiseDPOTrainer", run: RunDir) -> None:
        self._trainer, self._run = trainer, run
        self._bars = [bar for bar in trainer.callback_handler.callbacks if isinstance(bar, ProgressCallback)]
        self._began, self._updates_before, self._told = 0.0, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The host's progress callback stands before this one and has made its bar."""
        step = self._trainer.step
        self._began, self._updates_before = time.monotonic(), state.global_step
        self._told = self._began
        for callback in self._bars:
            if step is not None and callback.training_bar is not None:
                callback.training_bar.set_description(f"step {step.plan.index}/{step.num_steps} {step.plan.name}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Now and then."""
        now = time.monotonic()
        if self._trainer.step is None or not state.is_world_process_zero or now - self._told < SECONDS_BETWEEN:
            return
        self._told = now
        rate = (now - self._began) / max(1, state.global_step - self._updates_before)
        progress = Progress(self._trainer.step.plan.index, state.global_step, state.max_steps, rate, time.time())
        with suppress(OSError):  # what needs the disk says that it is full
            write_progress(self._run, progress)
        coming = forecast(Ledger.load(self._run.ledger), progress)
        assert coming is not None, "a step is under way"
        self._tell(coming)

    def _tell(self, coming: Forecast) -> None:
        assert coming.step_seconds is not None
        step = duration(coming.step_seconds)
        chain = None if coming.seconds is None else duration(coming.seconds)
        bars = [bar.training_bar for bar in self._bars if bar.training_bar is not None]
        for bar in bars:
            bar.set_postfix_str(f"step: {step} left" if chain is None else f"chain: {chain} left")
        if not bars:
            LOG.info(
                "step %d, %s: update %s of %s, %s left in the step, %s",
                coming.step,
                coming.name,
                f"{coming.update:,}",
                f"{coming.num_updates:,}",
                step,
                "and more in steps whose rows are not made yet" if chain is None else f"{chain} in the chain",
            )
