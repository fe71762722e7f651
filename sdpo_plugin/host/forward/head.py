"""The head of a model, by as many tokens at a time as their logits may take: with a vocabulary of 128,000 those of one
token are half a megabyte, and every copy as much again. What is kept of them are the numbers that TRL reads.

The head is called as ever, once and with all tokens, so that what gathers its weights (DeepSpeed ZeRO-3, FSDP) does so
around it. In training each part's logits are computed again in the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sdpo_plugin.host.forward.answer_logits import ENTROPY, LARGEST, LOG_PROB, MEAN

CAP = "final_logit_softcapping"  # in the config of a model, which reads it in every forward pass
LOGITS_AT_ONCE = 128 * 2**20  # bytes in float32; five times as much is in use while they are read


@dataclass
class Reading:
    """A forward pass whose logits are read.

    Attributes:
        labels: the next tokens, shape (n,).
        log_probs_alone: nothing else is read.
        columns: what is kept of logits that were read in parts, shape (n, 4), or (n, 1) where log-probs are read alone;
            the head gave the log-probs in their place, shape (1, n, 1), through which gradients go. FSDP2 rounds what a
            model gives to its half precision.
    """

    labels: torch.Tensor
    log_probs_alone: bool = False
    columns: torch.Tensor | None = None
    _capped: tuple[Any, float] | None = None

    def take_cap(self, config: Any) -> float | None:
        """The cap that a model puts on what its head gives (Gemma 2, arXiv 2408.00118, §2): the head does it now."""
        cap = getattr(config, CAP, None)
        if cap is None:
            return None
        self._capped = config, float(cap)
        setattr(config, CAP, None)
        return float(cap)

    def give_cap_back(self) -> None:
        """To the model."""
        if self._capped is not None:
            config, cap = self._capped
            setattr(config, CAP, cap)


@dataclass
class Watch:
    """Whether the logits of a model are what its head gives.

    Attributes:
        given: by the head, in the pass that is under way.
        is_last: nothing comes after the head; None: it has not been seen.
    """

    given: torch.Tensor | None = None
    is_last: bool | None = None


_reading: ContextVar[Reading | None] = ContextVar("the forward pass that is under way", default=None)
_watch: ContextVar[Watch | None] = ContextVar("what is found out about the head", default=None)


@contextmanager
def reading(labels: torch.Tensor, log_probs_alone: bool = False) -> Iterator[Reading]:
    """Within this context a head that ``read_in_parts`` has seen may read its logits itself."""
    under_way = Reading(labels, log_probs_alone)
    token = _reading.set(under_way)
    try:
        yield under_way
    finally:
        under_way.give_cap_back()
        _reading.reset(token)


@contextmanager
def watching() -> Iterator[Watch]:
    """Within this context such a head gives all its logits; ``compare_with_head`` is given those of the model."""
    watch = Watch()
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def compare_with_head(logits: torch.Tensor) -> None:
    """Take in the logits of a model, in a forward pass that is watched; some models scale what a head gives."""
    watch = _watch.get()
    if watch is not None and watch.given is not None:
        same = torch.equal(watch.given.to(logits.dtype), logits)
        watch.given, watch.is_last = None, same and watch.is_last is not False


def read_in_parts(model: PreTrainedModel) -> bool:
    """From now on the head of ``model`` reads large logits itself, where a forward pass asks for it.

    Returns:
        False, and nothing is changed, where the head is not one layer with weights of its own, but an adapter's or
        wrapped: DeepSpeed would gather the weights of what is within it for each part.
    """
    head = model.get_output_embeddings()
    if head is None or "forward" in vars(head) or next(head.children(), None) is not None:
        return False
    config = model.config.get_text_config()
    # A method, and an attribute, so that a copy of the model computes by its own weights and config.
    head.config_of_model = config
    head.forward = MethodType(_forward_by(max(1, LOGITS_AT_ONCE // (4 * int(config.vocab_size)))), head)
    return True


def read_at_once(model: PreTrainedModel) -> None:
    """Undo ``read_in_parts``; nothing where it has done nothing."""
    head = model.get_output_embeddings()
    if head is not None and "config_of_model" in vars(head):
        del head.forward, head.config_of_model


def _forward_by(tokens: int) -> Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]:
    """The forward of a head that reads the logits of more tokens than these in parts."""

    def forward(head: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        under_way, watch, project = _reading.get(), _watch.get(), partial(type(head).forward, head)
        if under_way is None:
            return project(states)
        cap = under_way.take_cap(head.config_of_model)
        if watch is None and len(under_way.labels) > tokens:
            parts = zip(states.flatten(0, -2).split(tokens), under_way.labels.split(tokens), strict=True)
            alone = under_way.log_probs_alone
            columns = torch.cat([_kept(project, cap, part, labels, alone) for part, labels in parts])
            under_way.columns = columns.detach()
            return columns[None, :, LOG_PROB : LOG_PROB + 1].clone()
        logits = _capped(project(states).float(), cap)
        if watch is not None:
            watch.given = logits.detach().clone()  # a model may write into them
        return logits

    return forward


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


Project = Callable[[torch.Tensor], torch.Tensor]


def _kept(project: Project, cap: float | None, states: torch.Tensor, labels: torch.Tensor, alone: bool) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return _read(project, cap, states, labels, alone)
    found: torch.Tensor = checkpoint(
        _read, project, cap, states, labels, alone, use_reentrant=False, preserve_rng_state=False
    )
    return found


def _read(project: Project, cap: float | None, states: torch.Tensor, labels: torch.Tensor, alone: bool) -> torch.Tensor:
    """What is kept of the logits of n tokens, shape (n, 4); of log-probs alone (n, 1)."""
    logits = _capped(project(states).float(), cap)
    log_probs = functional.log_softmax(logits, -1)
    columns = {LOG_PROB: log_probs.gather(-1, labels[:, None])[:, 0]}
    if alone:
        return columns[LOG_PROB][:, None]
    with torch.no_grad():
        columns[ENTROPY] = -(log_probs.exp() * log_probs).sum(-1)
        columns[MEAN], columns[LARGEST] = logits.mean(-1), logits.argmax(-1).float()
    return torch.stack([columns[column] for column in sorted(columns)], -1)
