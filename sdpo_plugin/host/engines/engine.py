"""Engines: DeepSpeed's and accelerate's wrappers around a model, made for a pass and undone between the steps.

FSDP2 wraps nothing: it shards a model where it is, once, and what the host's ``train()`` prepares is that model again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DynamoBackend
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from sdpo_plugin.deepspeed_conflicts import check_deepspeed
from sdpo_plugin.errors import ConfigError, UnsupportedHostError
from sdpo_plugin.host.engines.fsdp import require_usable_fsdp, reshard, shard

PREPARED = "_is_accelerate_prepared"
SHARING = (DistributedDataParallel, FSDPModule)
# By these a parameter holds DeepSpeed's optimizer, or its share of what that keeps; each engine sets them anew.
HOLDS_OPTIMIZER = ("_z3_optimizer", "_zero_optimizer", "_hp_mapping")


def require_usable_engine(trainer: Trainer) -> None:
    """Refuse a way to share out the model that a chain cannot be run under, before hours are spent.

    Raises:
        ConfigError: the model is spread over several GPUs of one process; as `check_deepspeed` has it, also where
            accelerate brings the config; FSDP1, or FSDP with torch_compile; a model that is compiled layer by layer.
    """
    if trainer.is_model_parallel:
        raise ConfigError(
            f"{type(trainer.model).__name__} is spread over several GPUs of one process, which a chain has not been "
            "run under; start a process for each GPU (the default launcher, with deepspeed or fsdp_config for a model "
            "that is larger than one of them), or let it see one (CUDA_VISIBLE_DEVICES=0)."
        )
    if trainer.is_deepspeed_enabled:
        check_deepspeed(trainer.accelerator.state.deepspeed_plugin.deepspeed_config)
    if trainer.is_fsdp_enabled:
        require_usable_fsdp(trainer)
    dynamo = trainer.accelerator.state.dynamo_plugin
    if dynamo.backend != DynamoBackend.NO and dynamo.use_regional_compilation and not trainer.is_deepspeed_enabled:
        raise ConfigError(
            "torch_compile_regional: true, or accelerate's ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION, is not "
            "supported with rl: sdpo: layers are compiled in a copy of the model, and the model itself would not be "
            "told when it trains and when it is evaluated; remove torch_compile_regional, and leave that variable "
            "unset."
        )


def set_engine_batch(trainer: Trainer, args: TrainingArguments) -> None:
    """Let the DeepSpeed engine that the next ``train()`` makes count batches as these arguments do.

    The host fills in the config where it says "auto", once for the run.
    """
    if not trainer.is_deepspeed_enabled:
        return
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=batch,
        gradient_accumulation_steps=accumulated,
        train_batch_size=batch * accumulated * args.world_size,
    )


def is_sharded(trainer: Trainer) -> bool:
    """Whether a rank holds only a part of each weight, so that a forward pass is a collective of all ranks."""
    if trainer.is_deepspeed_enabled:
        return bool(trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(trainer.is_fsdp_enabled)


def release(trainer: Trainer) -> None:
    """Undo what the host's ``train()`` wrapped around the model, so that the next ``train()`` starts afresh.

    Destroys the DeepSpeed engine with its hooks (a live one would partition the parameters a second time), takes
    mixed-precision wrappers off ``forward`` (each ``prepare`` adds another), and drops optimizer and schedule. What
    FSDP2 has sharded stays so.
    """
    wrapped = trainer.model_wrapped
    trainer.accelerator.free_memory()  # which destroys the engine that has trained
    if trainer.is_deepspeed_enabled and wrapped is not trainer.model:
        _take_off(wrapped)
    trainer.model = trainer.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)
    trainer.model_wrapped = trainer.model
    reshard(trainer.model)
    # accelerate 1.15 marks a model that it has prepared, also for a pass alone, and gives it back as it is when it is
    # asked again: without the wrapper of DDP, under which ranks share their gradients.
    vars(trainer.model).pop(PREPARED, None)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    if trainer.is_deepspeed_enabled:
        trainer.deepspeed = None


def require_shared_gradients(trainer: Trainer, model: torch.nn.Module) -> None:
    """Refuse to train ranks that would go ways of their own.

    Raises:
        UnsupportedHostError: there are several ranks, and the model is in no wrapper that adds up their gradients.
    """
    num_ranks = PartialState().num_processes
    if num_ranks > 1 and not trainer.is_deepspeed_enabled and not isinstance(model, SHARING):
        raise UnsupportedHostError(
            f"{num_ranks} ranks train, and accelerate {version('accelerate')} gave {type(model).__name__} back without "
            "a wrapper that shares their gradients: each would train a model of its own. Install an accelerate that "
            "your axolotl asks for."
        )


def require_engine(trainer: Trainer) -> None:
    """Under DeepSpeed the host's final save asks a live engine for the weights; a run that only saves has none yet."""
    if trainer.is_deepspeed_enabled and trainer.model_wrapped is trainer.model:
        trainer.model_wrapped = trainer.deepspeed = _inference_engine(trainer, trainer.model)
        # Set by accelerate when it prepares an engine for training, and read when the weights are gathered.
        trainer.accelerator.deepspeed_config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config


@contextmanager
def ready_model(trainer: Trainer, other: torch.nn.Module | None = None) -> Iterator[torch.nn.Module]:
    """The policy as it stands, or ``other``, in evaluation mode, ready for forward passes on every rank.

    Under DeepSpeed a live training engine serves as it is (the host's final save needs it alive); without one the
    model is wrapped in an engine that has no optimizer, for the time of the pass.
    """
    live_engine = other is None and trainer.is_deepspeed_enabled and trainer.model_wrapped is not trainer.model
    if live_engine:
        model = trainer.model_wrapped
    elif trainer.is_deepspeed_enabled:
        model = _inference_engine(trainer, other or trainer.model)
    else:
        release(trainer)
        shard(trainer, other or trainer.model)
        model = trainer.accelerator.prepare_model(other or trainer.model, evaluation_mode=True)
    model.eval()
    try:
        yield model
    finally:
        if live_engine:
            pass
        elif trainer.is_deepspeed_enabled:
            model.destroy()
            _take_off(model)
        else:
            release(trainer)


@contextmanager
def training_model(trainer: Trainer) -> Iterator[torch.nn.Module]:
    """The policy between two updates of its training, in evaluation mode, on every rank.

    As the host's evaluations have it: engine, optimizer and schedule stay as they are. But for an optimizer that keeps
    other weights for evaluations: the pass is of those that train, which the loss after it is compared with.
    """
    model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    model.eval()
    try:
        yield model
    finally:
        model.train()


def _take_off(engine: Any) -> None:
    """Let a DeepSpeed engine go that is destroyed.

    Its own ``destroy`` leaves two hooks on the model, which hold it, and its optimizer on the parameters: weights in
    float32 and moments of every step would stay beside those of the next one.
    """
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        if hook is not None:  # DeepCompile has taken them off
            hook.remove()
    for parameter in engine.module.parameters():
        for name in HOLDS_OPTIMIZER:
            vars(parameter).pop(name, None)


def _inference_engine(trainer: Trainer, model: torch.nn.Module) -> Any:
    import deepspeed  # imported late: it starts a launcher probe that plain runs do not need

    config = deepcopy(trainer.accelerator.state.deepspeed_plugin.deepspeed_config)
    for section in ("optimizer", "scheduler"):
        config.pop(section, None)
    if config["zero_optimization"]["stage"] != 3:
        config["zero_optimization"] = {"stage": 0}  # below 3 parameters are whole; there is nothing to shard
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine
