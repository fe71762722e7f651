"""When the trainer's modules are imported in a run, seen from inside a process that imports the host by itself.

`python -m integration_tests.harness.import_order config.yaml seen.json`
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

BINDING = ("trl.trainer.dpo_trainer", "axolotl.core.trainers.dpo", "sdpo_plugin.host.trainer")
FUNCTIONS = ("selective_log_softmax", "entropy_from_logits")


def loaded() -> list[str]:
    """The modules that bind TRL's functions and have been imported."""
    return [name for name in BINDING if name in sys.modules]


def watch_loader(seen: dict[str, Any]) -> None:
    """Note what has been imported when the host begins to load a model, and when it begins to read weights."""
    from axolotl.loaders import ModelLoader

    load, build = ModelLoader.load, ModelLoader._build_model

    def watched_load(self: Any) -> Any:
        seen["before the host's patches"] = loaded()
        return load(self)

    def watched_build(self: Any) -> Any:
        seen["before weights are read"] = loaded()
        return build(self)

    ModelLoader.load, ModelLoader._build_model = watched_load, watched_build


def train_and_watch(config: str) -> dict[str, Any]:
    """Train a config file. Without a GPU the host's kernels call what they replaced: those calls are counted."""
    import trl.trainer.utils
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    seen: dict[str, Any] = {"frozen": [gc.get_freeze_count()]}  # Python 3.12 has some hundred objects that never thaw
    cfg = load_cfg(config)
    seen["after register"] = loaded()
    original, calls = trl.trainer.utils.selective_log_softmax, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(gc.get_freeze_count())
        return original(*args, **kwargs)

    trl.trainer.utils.selective_log_softmax = counted
    watch_loader(seen)
    do_train(cfg, TrainerCliArgs())
    trainer = sys.modules["trl.trainer.dpo_trainer"]
    seen["bound"] = {name: vars(trainer)[name].__module__ for name in FUNCTIONS if name in vars(trainer)}
    seen["calls"] = len(calls)
    seen["frozen"] += [min(calls), gc.get_freeze_count()]
    seen["for nothing"] = [name for name in ("trackio", "gradio") if name in sys.modules]
    return seen


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(train_and_watch(sys.argv[1])), encoding="utf-8")
