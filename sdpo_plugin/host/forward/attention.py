"""Attention for packed rows: the model's own, called pair by pair, so that no pair sees another one; on a GPU a kernel
that takes all of them at once.

Prompt and chosen answer attend causally; a rejected answer attends to its prompt and to itself. A model finds this
attention by its name in transformers' registry, and the layout of the row among the arguments of its forward pass.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from sdpo_plugin.host.forward import varlen
from sdpo_plugin.host.forward.packing import PACKED, PackedLayout, Pair
from sdpo_plugin.host.forward.scores import note_scores

# Of the names that our attentions are registered by; of one with "flash" in it transformers would look for a kernel.
PREFIX = "sdpo_packed_"
# Attentions that take a mask; in place of others, such as flash attention, the first one is called.
SDPA, EAGER = "sdpa", "eager"
_row: ContextVar[PackedLayout | None] = ContextVar("the packed row on its way through a model", default=None)
Attention = Callable[..., tuple[torch.Tensor, Any]]
_originals: dict[str, str] = {}  # by our name


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Within this context ``model`` takes packed rows; everything else is computed as before.

    Yields:
        Whether the model takes an attention by name.
    """
    before = _names(model)
    takes = set_packed_attention(model)
    try:
        yield takes
    finally:
        _set_names(before)


def set_packed_attention(model: PreTrainedModel) -> bool:
    """From now on ``model`` takes packed rows; False, and nothing is changed, where it takes no attention by name."""
    if not class_of(model)._can_set_attn_implementation():
        return False
    _set_names([(config, _registered(name)) for config, name in _names(model)])
    return True


def class_of(model: PreTrainedModel) -> Any:
    """The model's own; FSDP2 puts one before it, whose source transformers would look into."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def takes_packed_rows(model: PreTrainedModel) -> bool:
    """Whether ``model`` stands within ``packed_attention``."""
    return model.config._attn_implementation in _originals


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within this context ``model`` has the attention that its user has set, also where it takes packed rows else."""
    before = _names(model)
    _set_names([(config, _originals.get(name, name)) for config, name in before])
    try:
        yield
    finally:
        _set_names(before)


Names = Sequence[tuple[PretrainedConfig, str]]


def _names(model: PreTrainedModel) -> Names:
    """The attention of a model, and of the models in it that have a config of their own."""
    configs = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    return [(config, config._attn_implementation) for config in {id(config): config for config in configs}.values()]


def _set_names(names: Names) -> None:
    """Without the check of ``set_attn_implementation``, which loads a kernel from the hub once more, or looks for one
    of our name."""
    for config, name in names:
        config._attn_implementation_internal = name


@contextmanager
def packed_row(layout: PackedLayout) -> Iterator[None]:
    """Within this context a forward pass is given a packed row, which needs no mask."""
    token = _row.set(layout)
    try:
        yield
    finally:
        _row.reset(token)


def row_under_way() -> PackedLayout | None:
    """The packed row that a forward pass is given; None: it is given padded ones."""
    return _row.get()


def _registered(original: str) -> str:
    """The name under which the attention that calls ``original`` is registered."""
    known = {other: name for name, other in _originals.items()}
    if original in _originals or original in known:
        return known.get(original, original)
    name = f"{PREFIX}{len(_originals)}"
    AttentionInterface.register(name, _attention_by(original))
    if original in ALL_MASK_ATTENTION_FUNCTIONS:  # of others the model makes none
        AttentionMaskInterface.register(name, _mask_by(original))
    _originals[name] = original
    return name


def _mask_by(original: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        return None if row_under_way() else ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs)

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
            ours = module.config._attn_implementation
            _set_names([(module.config, original)])  # flash attention looks itself up by its name there
            try:
                return _function(module, original)(module, query, key, value, attention_mask, **kwargs)
            finally:
                _set_names([(module.config, ours)])
        queries, keys, values = varlen.as_autocast(query, key, value)
        kernel = None if original == EAGER else varlen.kernel_for(queries, keys, values, kwargs)
        if kernel is not None:
            window = kwargs.get("sliding_window")
            return varlen.attend(kernel, queries, keys, values, layout, kwargs.get("scaling"), window), None
        # Scaled dot-product attention passes over caps and sinks, which flash and flex attention compute.
        caps_or_sinks = any(kwargs.get(argument) is not None for argument in varlen.OTHERS)
        name = EAGER if original == EAGER or (original != SDPA and caps_or_sinks) else SDPA
        if name == EAGER != original:
            note_scores(query.shape[1])
        attend = _function(module, name)
        kwargs.pop("position_ids", None)  # of the whole row; the host's SDPA for long rows would look for texts there
        texts = _texts(layout, kwargs.get("sliding_window"), query.dtype, query.device, needs_mask=name == EAGER)
        parts = []
        for asking, asked, mask in texts:
            seen = (_rows(key, asked), _rows(value, asked))
            parts.append(attend(module, _rows(query, (asking,)), *seen, mask, **kwargs)[0])
        return torch.cat(parts, dim=1), None

    return attention


def _rows(states: torch.Tensor, parts: tuple[slice, ...]) -> torch.Tensor:
    """Parts of states of shape (1, heads, N, size), one after the other; a single one is not copied."""
    found = [states[:, :, part] for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _function(module: torch.nn.Module, name: str) -> Attention:
    """An attention by name; the eager one is a function of the model's own source file."""
    default = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, default)
    return found


Text = tuple[slice, tuple[slice, ...], torch.Tensor | None]


@lru_cache(maxsize=4)  # every layer of a batch asks, of a model with windows in some layers for two kinds
def _texts(
    layout: PackedLayout, window: int | None, dtype: torch.dtype, device: torch.device, *, needs_mask: bool
) -> list[Text]:
    """Queries, keys and mask of each [prompt | chosen], and of each rejected answer, whose keys begin with the prompt.

    Args:
        layout: of the row.
        window: how many tokens back a layer looks, itself among them; None: all.
        dtype: of a mask that is added.
        device: of the masks.
        needs_mask: also where an attention without a mask is causal; it is added to the scores.
    """
    return [text for pair in layout.pairs for text in _of_pair(pair, window, dtype, device, needs_mask=needs_mask)]


def forget_masks() -> None:
    """Those of the last batches, and their places, which are held on the device."""
    _texts.cache_clear()
    varlen.forget_texts()


def _of_pair(
    pair: Pair, window: int | None, dtype: torch.dtype, device: torch.device, *, needs_mask: bool
) -> Iterator[Text]:
    first, second = pair.prompt + pair.chosen, pair.prompt + pair.rejected
    additive = dtype if needs_mask else None
    whole = slice(pair.start, pair.start + first)
    is_causal = not needs_mask and (window is None or first <= window)
    yield whole, (whole,), None if is_causal else _mask(first, first, window, device, additive)
    if pair.rejected:
        prompt, rejected = (slice(pair.start, pair.start + pair.prompt), slice(whole.stop, pair.start + len(pair)))
        yield rejected, (prompt, rejected), _mask(pair.rejected, second, window, device, additive)


def _mask(
    num_queries: int, num_keys: int, window: int | None, device: torch.device, additive: torch.dtype | None
) -> torch.Tensor:
    """Causal, for the last ``num_queries`` of ``num_keys`` tokens, shape (1, 1, num_queries, num_keys).

    True where a query sees a key; additive: 0 there, and the least number of the dtype elsewhere.
    """
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    if additive is None:
        return seen[None, None]
    zero = torch.zeros((), dtype=additive, device=device)
    return torch.where(seen, zero, torch.finfo(additive).min)[None, None]
