"""What training changes: kept in memory for `policy_init: base`, read back from an export when a run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import nn

from sdpo_plugin.errors import OutputError


class Snapshot:
    """A copy of the trainable parameters in main memory: all weights in full fine-tuning, the adapter with LoRA.

    Under ZeRO-3 every rank keeps the shard it owns, so that the copies of all ranks together are one model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._shards = {name: owned(p).detach().to("cpu", copy=True) for name, p in trainable(model)}

    def restore(self, model: nn.Module) -> None:
        """Write the copy back. No DeepSpeed engine may be alive: it keeps weights of its own."""
        with torch.no_grad():
            self._write(dict(trainable(model)))

    def _write(self, parameters: dict[str, nn.Parameter]) -> None:
        assert parameters.keys() == self._shards.keys()
        for name, parameter in parameters.items():
            kept, shard = self._shards[name], owned(parameter)
            if kept.shape == shard.shape:
                shard.copy_(kept)
                if _is_sharded(parameter) and parameter.numel() == parameter.ds_numel:
                    parameter.partition()  # a whole copy was gathered here, and would hide the shard just written
            else:
                _scatter(parameter, kept)


def _scatter(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """An adapter is made whole on every rank, and sharded only when the first engine is built."""
    import deepspeed  # imported late, as in distributed.py

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(whole)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What training changes, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")  # what DeepSpeed's ZeRO-3 adds to a parameter that it partitions


def owned(parameter: nn.Parameter) -> torch.Tensor:
    """The values that this rank keeps: its shard under ZeRO-3, else all."""
    shard: torch.Tensor = parameter.ds_tensor if _is_sharded(parameter) else parameter.data
    return shard


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Give the adapter of ``model`` the weights that were exported to ``directory``. No engine may be alive.

    Raises:
        OutputError: they do not fit the adapter.
    """
    result = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or result.unexpected_keys:
        raise OutputError(
            f"{directory} holds another adapter than the config describes: {len(missing)} of its weights are missing, "
            f"{len(result.unexpected_keys)} are unknown, e.g. {[*missing, *result.unexpected_keys][0]}; restore the "
            "config that the run began with."
        )


def whole_size(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter, also where ZeRO-3 has left this rank a shard of it."""
    return tuple(parameter.ds_shape if _is_sharded(parameter) else parameter.shape)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """What training changes, whole on every rank within this context."""
    sharded = [parameter for _, parameter in trainable(model) if _is_sharded(parameter)]
    if not sharded:
        yield
        return
    import deepspeed  # imported late, as in distributed.py

    with deepspeed.zero.GatheredParameters(sharded):
        yield
