"""Attention for packed rows: the model's own, called pair by pair, so that no pair sees another one.

Prompt and chosen answer attend causally; a rejected answer attends to its prompt and to itself. A model finds this
attention by its name in transformers' registry, and the layout of the row among the arguments of its forward pass.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from sdpo_plugin.host.forward.packing import PACKED, PackedLayout, Pair

# Attentions that take a mask; in place of others, such as flash attention, the first one is called.
SDPA, EAGER = "sdpa", "eager"
_is_packed: ContextVar[bool] = ContextVar("a packed row is on its way through a model", default=False)
Attention = Callable[..., tuple[torch.Tensor, Any]]


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Within this context ``model`` takes packed rows; everything else is computed as before.

    Yields:
        Whether the model takes an attention by name.
    """
    original = model.config._attn_implementation
    if not model._can_set_attn_implementation():
        yield False
        return
    model.set_attn_implementation(_registered(original))
    try:
        yield True
    finally:
        model.set_attn_implementation(original)


@contextmanager
def packed_row() -> Iterator[None]:
    """Within this context a forward pass is given a packed row, which needs no mask."""
    token = _is_packed.set(True)
    try:
        yield
    finally:
        _is_packed.reset(token)


def _registered(original: str) -> str:
    """The name under which the attention that calls ``original`` is registered."""
    name = f"sdpo_packed_{original}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention_by(original))
        AttentionMaskInterface.register(name, _mask_by(original))
    return name


def _mask_by(original: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        return None if _is_packed.get() else ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs)

    return mask


def _attention_by(original: str) -> Attention:
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        layout: PackedLayout | None = kwargs.pop(PACKED, None)
        if layout is None:
            return _function(module, original)(module, query, key, value, attention_mask, **kwargs)
        name = EAGER if original == EAGER else SDPA
        attend, window = _function(module, name), kwargs.get("sliding_window")
        parts = []
        for pair in layout.pairs:
            for queries, keys, mask in _texts(pair, window, query, needs_mask=name == EAGER):
                out, _ = attend(module, query[:, :, queries], key[:, :, keys], value[:, :, keys], mask, **kwargs)
                parts.append(out)
        return torch.cat(parts, dim=1), None

    return attention


def _function(module: torch.nn.Module, name: str) -> Attention:
    """An attention by name; the eager one is a function of the model's own source file."""
    default = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, default)
    return found


def _texts(
    pair: Pair, window: int | None, like: torch.Tensor, *, needs_mask: bool
) -> Iterator[tuple[slice, Any, torch.Tensor | None]]:
    """Queries, keys and mask of [prompt | chosen], then of the rejected answer, whose keys begin with the prompt.

    Args:
        pair: where it lies.
        window: how many tokens back a layer looks, itself among them; None: all.
        like: of the mask's device and dtype.
        needs_mask: also where an attention without a mask is causal.
    """
    first, second = pair.prompt + pair.chosen, pair.prompt + pair.rejected
    whole = slice(pair.start, pair.start + first)
    is_causal = not needs_mask and (window is None or first <= window)
    yield whole, whole, None if is_causal else _mask(first, first, window, like, additive=needs_mask)
    if pair.rejected:
        rejected = slice(pair.start + first, pair.start + len(pair))
        device = like.device
        prompt = torch.arange(pair.start, pair.start + pair.prompt, device=device)
        keys = torch.cat([prompt, torch.arange(rejected.start, rejected.stop, device=device)])
        yield rejected, keys, _mask(pair.rejected, second, window, like, additive=needs_mask)


def _mask(num_queries: int, num_keys: int, window: int | None, like: torch.Tensor, *, additive: bool) -> torch.Tensor:
    """Causal, for the last ``num_queries`` of ``num_keys`` tokens, shape (1, 1, num_queries, num_keys).

    True where a query sees a key; additive: 0 there, and the least number of the dtype elsewhere.
    """
    queries = torch.arange(num_keys - num_queries, num_keys, device=like.device)[:, None]
    keys = torch.arange(num_keys, device=like.device)
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    if additive:
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return torch.where(seen, zero, torch.finfo(like.dtype).min)[None, None]
    return seen[None, None]
