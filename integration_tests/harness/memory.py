"""How many models a training loads and keeps, and how much memory it takes at its peak."""

from __future__ import annotations

from typing import Any


class _Census:
    """Counts live causal language models after every update, as a callback of the trainer does."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def count(self) -> None:
        import gc

        self.counts.append(sum(type(thing).__name__ == "LlamaForCausalLM" for thing in gc.get_objects()))


def give_back_what_is_freed() -> None:
    """Let glibc map every tensor by itself, and unmap it when it is freed.

    Otherwise large blocks come from a heap that shrinks only from its end, so that the order of small allocations
    decides how much of what is freed still counts as resident: half a model of this size, from one version to another.
    """
    import ctypes

    m_mmap_threshold = -3
    assert ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 16) == 1


def train_and_measure(config: str) -> dict[str, Any]:
    """Train a config file of a Llama, full fine-tuning, in one process. Runs in the child.

    Returns:
        `loads`: calls of the host's model loader; `live`: models alive after each update; `start` and `peak`: resident
        memory before the run and at most, in bytes.
    """
    import resource

    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
    from axolotl.loaders import ModelLoader
    from transformers import TrainerCallback

    census, loads = _Census(), []
    load, init = ModelLoader.load, AxolotlDPOTrainer.__init__

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            census.count()

    def counted_load(self: Any) -> Any:
        loads.append(self.reference_model)
        return load(self)

    def watched_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.add_callback(Watch())

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    ModelLoader.load, AxolotlDPOTrainer.__init__ = counted_load, watched_init
    give_back_what_is_freed()
    start = peak()
    do_train(load_cfg(config), TrainerCliArgs())
    return {"loads": len(loads), "live": census.counts, "start": start, "peak": peak()}
