"""The weights that training changes: kept in memory for `policy_init: base`, read back from an export on resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from sdpo_plugin.errors import OutputError


class Snapshot:
    """A copy of the trainable parameters in main memory: all weights in full fine-tuning, the adapter with LoRA.

    One copy over all ranks: a parameter that every rank holds whole is kept by rank 0 alone; one that ZeRO-3 or FSDP2
    has sharded is kept by every rank as far as it owns it.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = trainable(model)
        self._sharded = {name: _is_sharded(parameter) for name, parameter in parameters}  # the same on every rank
        is_main = PartialState().is_main_process
        kept = [(name, parameter) for name, parameter in parameters if is_main or self._sharded[name]]
        self._kept = {name: owned(parameter).detach().to("cpu", copy=True) for name, parameter in kept}

    @property
    def num_bytes(self) -> int:
        """Main memory that this rank spends on it."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept.values())

    def restore(self, model: nn.Module) -> None:
        """Write the copy back, on every rank at once. No DeepSpeed engine may be alive: it keeps weights of its own."""
        parameters = trainable(model)
        assert [name for name, _ in parameters] == list(self._sharded)
        with torch.no_grad():
            for name, parameter in parameters:
                if self._sharded[name]:
                    _write_shard(parameter, self._kept[name])
                elif _is_sharded(parameter):
                    _scatter(parameter, self._kept.get(name))
                else:
                    _broadcast(parameter, self._kept.get(name))


def _write_shard(parameter: nn.Parameter, kept: torch.Tensor) -> None:
    owned(parameter).copy_(kept)
    if not isinstance(parameter, DTensor) and parameter.numel() == parameter.ds_numel:
        parameter.partition()  # a whole copy was gathered here, and would hide the shard just written


def _broadcast(parameter: nn.Parameter, whole: torch.Tensor | None) -> None:
    """From rank 0, which alone has ``whole``, to the parameter of every rank, where it lies."""
    if whole is not None:
        parameter.copy_(whole)
    if PartialState().num_processes > 1:
        shared = parameter.detach().to(PartialState().device).contiguous()  # NCCL takes nothing from main memory
        dist.broadcast(shared, src=0)
        parameter.copy_(shared)


def _scatter(parameter: nn.Parameter, whole: torch.Tensor | None) -> None:
    """An adapter is made whole on every rank, and sharded only when the first engine is built."""
    import deepspeed  # imported late, as in engine.py

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if whole is not None:
            parameter.copy_(whole)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training changes, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _is_sharded(parameter: nn.Parameter) -> bool:
    return _is_partitioned(parameter) or isinstance(parameter, DTensor)  # which FSDP2 makes of a parameter


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")  # what DeepSpeed's ZeRO-3 adds to a parameter that it partitions


def owned(parameter: nn.Parameter) -> torch.Tensor:
    """The values that this rank keeps: its shard under ZeRO-3 and FSDP2, else all."""
    if isinstance(parameter, DTensor):
        return parameter.detach().to_local()
    shard: torch.Tensor = parameter.ds_tensor if _is_partitioned(parameter) else parameter.data
    return shard


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Give the adapter of ``model`` the weights that were exported to ``directory``. No engine may be alive.

    Raises:
        OutputError: they do not fit the adapter.
    """
    weights = _as_in(model, load_peft_weights(str(directory), device="cpu"))
    with gathered(model, changes=True):  # a pass before may have had ZeRO-3 shard the adapter
        result = set_peft_model_state_dict(model, weights)
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or result.unexpected_keys:
        raise OutputError(
            f"{directory} holds another adapter than the config describes: {len(missing)} of its weights are missing, "
            f"{len(result.unexpected_keys)} are unknown, e.g. {[*missing, *result.unexpected_keys][0]}; restore the "
            "config that the run began with."
        )


def _as_in(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that every rank has read, sharded where FSDP2 has sharded what they are copied to."""
    sharded = [parameter for _, parameter in trainable(model) if isinstance(parameter, DTensor)]
    if not sharded:
        return weights
    mesh, placements = sharded[0].device_mesh, sharded[0].placements  # the same for all: the whole adapter trains
    return {
        name: distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)
        for name, tensor in weights.items()
    }


def save_adapter(model: PeftModel, save: Callable[[dict[str, torch.Tensor] | None], None]) -> None:
    """Call ``save`` while the weights of an adapter are whole: on every rank, of which one may write.

    Args:
        model: the policy.
        save: takes the weights by name, or None where the model holds them.
    """
    if any(isinstance(parameter, DTensor) for _, parameter in trainable(model)):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        save(get_model_state_dict(model, options=options))
        return
    with gathered(model):
        save(None)


def whole_size(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter, also where ZeRO-3 or FSDP2 has left this rank a shard of it."""
    return tuple(parameter.ds_shape if _is_partitioned(parameter) else parameter.shape)


@contextmanager
def gathered(model: nn.Module, *, changes: bool = False) -> Iterator[None]:
    """Within this context every rank holds the whole of what training changes, where ZeRO-3 has sharded it.

    Args:
        model: the policy.
        changes: what rank 0 writes there is kept, by every rank.
    """
    sharded = [parameter for _, parameter in trainable(model) if _is_partitioned(parameter)]
    if not sharded:
        yield
        return
    import deepspeed  # imported late, as in engine.py

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changes else None):
        yield
