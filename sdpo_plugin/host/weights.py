"""`policy_init: base`: what training changes, kept as it was before step 1 and put back before every later step."""

import torch
from torch import nn


class Snapshot:
    """A copy of the trainable parameters in main memory: all weights in full fine-tuning, the adapter with LoRA.

    Under ZeRO-3 every rank keeps the shard it owns, so that the copies of all ranks together are one model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._shards = {name: _owned(p).detach().to("cpu", copy=True) for name, p in _trainable(model)}

    def restore(self, model: nn.Module) -> None:
        """Write the copy back. No DeepSpeed engine may be alive: it keeps weights of its own."""
        with torch.no_grad():
            self._write(dict(_trainable(model)))

    def _write(self, parameters: dict[str, nn.Parameter]) -> None:
        assert parameters.keys() == self._shards.keys()
        for name, parameter in parameters.items():
            kept, owned = self._shards[name], _owned(parameter)
            if kept.shape == owned.shape:
                owned.copy_(kept)
                if _is_sharded(parameter) and parameter.numel() == parameter.ds_numel:
                    parameter.partition()  # a whole copy was gathered here, and would hide the shard just written
            else:
                _scatter(parameter, kept)


def _scatter(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """An adapter is made whole on every rank, and sharded only when the first engine is built."""
    import deepspeed  # imported late, as in distributed.py

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(whole)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")  # what DeepSpeed's ZeRO-3 adds to a parameter that it partitions


def _owned(parameter: nn.Parameter) -> torch.Tensor:
    shard: torch.Tensor = parameter.ds_tensor if _is_sharded(parameter) else parameter.data
    return shard
