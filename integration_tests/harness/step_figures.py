"""A plugin that logs values, a table and a picture of its own where each step ends, and notes what a callback sees."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

COLUMNS, ROWS = ("model", "γ"), (("M_0", 1.5), ("M_1", None))


class StepFigures(BasePlugin):
    """Logs through `trainer.loggers`, as whoever has figures of a step would."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """Called by the host when the trainer is built."""
        if os.environ.get("SDPO_TEST_FULL_DISK"):
            fill_disk(trainer)
        return [AtTheEnd(trainer, Path(cfg.output_dir))]


class AtTheEnd(TrainerCallback):
    """A callback of a user's own: it sees the trainer's count of updates, beginning and end of every step."""

    def __init__(self, trainer: Any, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._seen: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One training a step."""
        self._seen.append("begin")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A point of the trainer's."""
        self._seen.append([state.global_step, state.max_steps, "loss" in logs])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every rank comes here."""
        from PIL import Image
        from wandb.sdk.data_types._private import MEDIA_TMP

        # The warm process has made it, and the first of its forks to end has removed it.
        Path(MEDIA_TMP.name).mkdir(exist_ok=True)
        loggers = self._trainer.loggers
        loggers.log({"sdpo/own": 0.5})
        loggers.log_table("sdpo/gamma", COLUMNS, ROWS)
        picture = self._folder / "picture.png"
        Image.new("RGB", (3, 2), (255, 0, 0)).save(picture)
        loggers.log_image("sdpo/picture", picture)
        self._seen.append("end")
        (self._folder / "seen.json").write_text(json.dumps(self._seen), encoding="utf-8")


def fill_disk(trainer: Any) -> None:
    """Let TensorBoard's writer find a full disk from update 3 of the chain on."""
    from torch.utils.tensorboard import SummaryWriter

    write = SummaryWriter.add_scalar

    def add_scalar(self: Any, tag: str, value: float, step: int, *rest: Any, **options: Any) -> None:
        if step == 3:
            raise OSError(28, "No space left on device")
        write(self, tag, value, step, *rest, **options)

    SummaryWriter.add_scalar = add_scalar
