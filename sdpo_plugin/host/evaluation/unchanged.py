"""Evaluating a model leaves everything as it was: what is trained afterwards is what would be trained without it."""

import logging
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from sdpo_plugin.host.forward.attention import own_attention

HARNESS = "lm_eval"  # its logger
# Set: it bootstraps without worker processes, which it ends by SIGTERM. A fork of this process passes that on to the
# thread that listens for signals, and the run would stop.
NO_WORKERS = "DISABLE_MULTIPROC"


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Within this context the model has the attention that its user has set, and is in evaluation mode.

    After it the modes of all modules, the model's configs, and the state of every random number generator are those
    from before it.

    Args:
        model: a model of transformers, or an adapter on one.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    modes = [(module, module.training) for module in model.modules()]
    use_cache, generation = base.config.use_cache, deepcopy(base.generation_config)
    with ExitStack() as stack:
        for context in (own_attention(base), _same_random_numbers(), _quiet_harness()):
            stack.enter_context(context)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            base.config.use_cache, base.generation_config = use_cache, generation


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """The harness seeds Python, numpy and PyTorch."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """It warns of each model that it has not loaded itself, and of each setting that is not the task's own; and with
    each result it describes the machine, which takes seconds."""
    from lm_eval import evaluator

    logger, before = logging.getLogger(HARNESS), os.environ.get(NO_WORKERS)
    level, add_env_info = logger.level, evaluator.add_env_info
    logger.setLevel(logging.ERROR)
    evaluator.add_env_info = lambda storage: None
    os.environ[NO_WORKERS] = "1"
    try:
        yield
    finally:
        logger.setLevel(level)
        evaluator.add_env_info = add_env_info
        if before is None:
            del os.environ[NO_WORKERS]
        else:
            os.environ[NO_WORKERS] = before
