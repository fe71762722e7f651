"""Ranks and engines: rank 0 decides and the others are told; one scoring pass on whatever holds the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import Trainer

from sdpo_plugin.errors import ConfigError, RankZeroError, SDPOError

T = TypeVar("T")

# Rank 0 seals checkpoints and writes models while the others wait for it. However large they are, no watchdog may take
# that for a dead rank; gloo notices by itself, and at once, where a rank is gone.
LONGEST_WAIT = timedelta(days=7)
_groups: dict[Any, Any] = {}


def waiting_group() -> dist.ProcessGroup | None:
    """The group, of all ranks, by which they agree and wait; None where there is one rank. All ranks ask together.

    Not the group that trains: NCCL ends a process whose peers keep it waiting for longer than `ddp_timeout`, and sends
    objects by way of the GPU's memory.
    """
    if PartialState().num_processes == 1:
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()  # of an earlier run in this process
        _groups[world] = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return cast(dist.ProcessGroup, _groups[world])


def on_rank_0(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0; every rank has its result. An error of ours or of the file system is every rank's.

    Without this the other ranks would wait for rank 0 in the next collective, for ever. Of any other error they are
    told that rank 0 had one; rank 0 itself raises it.
    """
    group = waiting_group()
    result: list[Any] = [None, RankZeroError("rank 0 stopped with an error of its own; its message says which.")]
    if PartialState().is_main_process:
        try:
            result = [action(), None]
        except (SDPOError, OSError) as known:
            result = [None, known]
        finally:
            _tell(result, group)
    else:
        _tell(result, group)
    value, error = result
    if error is not None:
        raise error
    return cast(T, value)


def _tell(objects: list[Any], group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.broadcast_object_list(objects, src=0, group=group)


def gather(mine: list[T]) -> list[T]:
    """The items of all ranks, on every rank, in the order of the ranks."""
    group = waiting_group()
    if group is None:
        return mine
    parts: list[list[T]] = [[] for _ in range(PartialState().num_processes)]
    dist.all_gather_object(parts, mine, group=group)
    return [item for part in parts for item in part]


def largest(mine: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    group = waiting_group()
    if group is None:
        return mine
    number = torch.tensor(mine)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=group)
    return int(number)


def wait_for_all() -> None:
    """Come back when every rank has come here, however long one of them writes."""
    group = waiting_group()
    if group is not None:
        dist.barrier(group=group)


# DeepSpeed reads both; the host's own ZeRO-3 configs use the second.
GATHER_KEYS = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")


def require_usable_deepspeed(trainer: Trainer) -> None:
    """Refuse a DeepSpeed config that a chain cannot be run under, before hours are spent.

    Raises:
        ConfigError: an optimizer or scheduler of its own, or ZeRO-3 without gathering the weights for a save.
    """
    if not trainer.is_deepspeed_enabled:
        return
    plugin = trainer.accelerator.state.deepspeed_plugin
    for section, keys in (("optimizer", "optimizer:, learning_rate:"), ("scheduler", "lr_scheduler:, warmup_steps:")):
        if section in plugin.deepspeed_config:
            kind = plugin.deepspeed_config[section].get("type")
            raise ConfigError(
                f"deepspeed: the config has a section {section!r} (type {kind!r}), which is filled in once, for the "
                "first step's length and learning rate, and would be wrong for every later step; remove it: Axolotl's "
                f"own keys ({keys} …) hold for each step."
            )
    zero = plugin.deepspeed_config["zero_optimization"]
    if plugin.zero_stage == 3 and not any(zero.get(key) for key in GATHER_KEYS):
        raise ConfigError(
            f"deepspeed: zero_optimization has {GATHER_KEYS[0]}: {zero.get(GATHER_KEYS[0])!r}, so M_t could not be "
            f"written after a step; set {GATHER_KEYS[0]}: true in the DeepSpeed config."
        )


def release(trainer: Trainer) -> None:
    """Undo what the host's ``train()`` wrapped around the model, so that the next ``train()`` starts afresh.

    Destroys the DeepSpeed engine with its hooks (a live one would partition the parameters a second time), takes
    mixed-precision wrappers off ``forward`` (each ``prepare`` adds another), and drops optimizer and schedule.
    """
    wrapped = trainer.model_wrapped
    trainer.accelerator.free_memory()
    trainer.model = trainer.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)
    trainer.model_wrapped = trainer.model
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    if trainer.is_deepspeed_enabled:
        trainer.deepspeed = None


def require_engine(trainer: Trainer) -> None:
    """Under DeepSpeed the host's final save asks a live engine for the weights; a run that only saves has none yet."""
    if trainer.is_deepspeed_enabled and trainer.model_wrapped is trainer.model:
        trainer.model_wrapped = trainer.deepspeed = _inference_engine(trainer, trainer.model)
        # Set by accelerate when it prepares an engine for training, and read when the weights are gathered.
        trainer.accelerator.deepspeed_config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config


@contextmanager
def scoring_model(trainer: Trainer, other: torch.nn.Module | None = None) -> Iterator[torch.nn.Module]:
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
        model = trainer.accelerator.prepare_model(other or trainer.model, evaluation_mode=True)
    model.eval()
    try:
        yield model
    finally:
        if live_engine:
            pass
        elif trainer.is_deepspeed_enabled:
            model.destroy()
        else:
            release(trainer)


def _inference_engine(trainer: Trainer, model: torch.nn.Module) -> Any:
    import deepspeed  # imported late: it starts a launcher probe that plain runs do not need

    config = deepcopy(trainer.accelerator.state.deepspeed_plugin.deepspeed_config)
    for section in ("optimizer", "scheduler"):
        config.pop(section, None)
    if config["zero_optimization"]["stage"] != 3:
        config["zero_optimization"] = {"stage": 0}  # below 3 parameters are whole; there is nothing to shard
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine
