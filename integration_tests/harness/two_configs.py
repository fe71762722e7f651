"""Several configs in one process, one after the other, as a notebook or a sweep runs them."""

from __future__ import annotations

from typing import Any


def train_in_turn(*configs: str) -> list[dict[str, Any]]:
    """Train each config file in this process; an error ends that run only. Runs in the child.

    Returns:
        For each: the name of the `error`, how many models were `loaded`, and whether the function that sets up the
        reference model is `own`, the host's untouched one, when the run is over.
    """
    import axolotl.train
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train
    from axolotl.loaders import ModelLoader

    original = axolotl.train.setup_reference_model
    load, loaded = ModelLoader.load, []

    def counted(self: Any) -> Any:
        loaded.append(self.reference_model)
        return load(self)

    ModelLoader.load = counted
    outcomes = []
    for config in configs:
        loaded.clear()
        error = None
        try:
            do_train(load_cfg(config), TrainerCliArgs())
        except ValueError as problem:  # ours, and pydantic's ValidationError
            error = type(problem).__name__
        own = axolotl.train.setup_reference_model is original
        outcomes.append({"error": error, "loaded": len(loaded), "own": own})
    return outcomes
