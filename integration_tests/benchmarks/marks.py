"""A plugin of the host that notes when a run reaches what, and how much memory it has: one line of JSON a mark.

Both sides of a comparison load it. It writes to the file that `workload.FILE` names.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from integration_tests.benchmarks.workload import FILE


def mark(event: str) -> None:
    """Note an event, with seconds of the clock, and megabytes in use and at most in use until now: of a GPU where there
    is one, else of the process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    in_use, peak = (int(status[key].split()[0]) / 1000 for key in ("VmRSS", "VmHWM"))
    if torch.cuda.is_available():
        in_use, peak = torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6
    if FILE in os.environ and os.environ.get("RANK", "0") == "0":
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), "rss": in_use, "peak": peak}) + "\n")


class Marks(BasePlugin):  # type: ignore[misc]  # the host ships no types
    """Marks the phases of a run that the host's hooks can see."""

    def register(self, cfg: Any) -> None:
        """The host is imported, and reads the config."""
        mark("config")

    def pre_model_load(self, cfg: Any) -> None:
        """Data are loaded."""
        mark("data")

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """The model is loaded, with its adapter."""
        mark("model")

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """The trainer is built."""
        mark("trainer")
        return [_Steps()]


class _Steps(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        mark("train begin")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        mark("update")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        mark("train end")
