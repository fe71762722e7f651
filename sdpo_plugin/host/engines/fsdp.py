"""FSDP2, which wraps nothing: it shards a model where it is, once, and the host's ``train()`` gets that model again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer

from sdpo_plugin.errors import ConfigError

WHOLE = "FULL_STATE_DICT"  # of FSDP's state_dict_type: the weights are gathered for a save


def require_usable_fsdp(trainer: Trainer) -> None:
    """Refuse a config of FSDP that a chain cannot be run under.

    Raises:
        ConfigError: FSDP1, or FSDP with torch_compile, also by accelerate's own settings.
    """
    version = trainer.accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:
        raise ConfigError(f"fsdp_version: {version!r} is not supported with rl: sdpo; set fsdp_version: 2.")
    if trainer.args.torch_compile:
        raise ConfigError("torch_compile: true is not supported with rl: sdpo and fsdp_config; remove one of them.")
    backend = trainer.accelerator.state.dynamo_plugin.backend
    if backend != DynamoBackend.NO:
        raise ConfigError(
            f"accelerate would compile the model (dynamo_backend: {backend.value}), which is not supported with "
            "rl: sdpo and fsdp_config; set --dynamo_backend no, and leave ACCELERATE_DYNAMO_BACKEND unset."
        )


def shard(trainer: Trainer, model: torch.nn.Module) -> None:
    """Have FSDP2 shard a model as the host's ``train()`` would; nothing without it, or where that is done."""
    if not trainer.is_fsdp_enabled or isinstance(model, FSDPModule):
        return
    # accelerate shards no model without an optimizer; one parameter is enough for this one, which never steps.
    trainer.accelerator.prepare(model, torch.optim.SGD([next(model.parameters())], lr=0.0))
    trainer.accelerator.free_memory()
    # The layers are wrapped for it now; each further ``prepare`` would wrap them once more.
    trainer.accelerator.state.fsdp_plugin.activation_checkpointing = False


def reshard(model: torch.nn.Module) -> None:
    """A forward pass without a backward one leaves the outermost parameters gathered, and in place of the shards: an
    optimizer that is made then would hold what is thrown away."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[None]:
    """Within this context ``model`` may generate, also where it is an adapter: its `generate` is that of the model
    below it, and goes past the outermost module, whose forward pass gathers the embeddings."""
    if not (isinstance(model, FSDPModule) and isinstance(model, PeftModel)):
        yield
        return
    register_fsdp_forward_method(model, "generate")
    try:
        yield
    finally:
        del model.generate


@contextmanager
def saving_whole(trainer: Trainer) -> Iterator[None]:
    """Within this context the host saves whole models, also where its checkpoints under FSDP2 are sharded."""
    if not trainer.is_fsdp_enabled:
        yield
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    of_checkpoints = plugin.state_dict_type
    plugin.set_state_dict_type(WHOLE)
    try:
        yield
    finally:
        plugin.set_state_dict_type(of_checkpoints)
