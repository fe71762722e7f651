"""Attention of a packed row in one call of PyTorch's own kernel for texts of different lengths, on a GPU that has it.

The queries of a text stand in the row as they are, [prompt | chosen] or rejected. The keys of a rejected answer are
those of [prompt | rejected]: a causal kernel aligns the last query with the last key.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate, chain
from typing import Any

import torch

from sdpo_plugin.host.forward.packing import PackedLayout

Kernel = Callable[..., torch.Tensor]
MODULE = "torch.nn.attention.varlen"
NEEDS = {"scale", "window_size", "enable_gqa"}  # of its arguments; PyTorch's first kernel had none of them
AMPERE = (8, 0)  # compute capability of the oldest GPUs that its flash attention runs on
LARGEST_HEAD = 256
WITHOUT_GRADIENTS = range(193, 225)  # sizes that some GPUs, of compute capability 8.6 to 8.9 and 12, cannot train
# What a model may hand to its attention that this kernel does not compute.
OTHERS = ("softcap", "s_aux", "position_bias", "head_mask")


def kernel_for(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, arguments: Mapping[str, Any]
) -> Kernel | None:
    """The kernel, where it computes what the model asks for; None: pair by pair.

    Args:
        query, key, value: states of shape (1, heads, N, size).
        arguments: the others that the model gives its attention.
    """
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or torch.version.cuda is None:
        return None
    size = query.shape[-1]
    if size > LARGEST_HEAD or size in WITHOUT_GRADIENTS or size % 8 or value.shape[-1] != size:
        return None
    if not query.dtype == key.dtype == value.dtype or not torch.backends.cuda.is_flash_attention_available():
        return None
    if arguments.get("dropout") or any(arguments.get(name) is not None for name in OTHERS):
        return None
    return _kernel() if torch.cuda.get_device_capability(query.device) >= AMPERE else None


def as_autocast(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three states in the dtype that autocast gives PyTorch's own attention; rotary positions leave the first two in
    float32 where a model's norms are in it."""
    states, kind = (query, key, value), query.device.type
    if not torch.is_autocast_enabled(kind):
        return states
    return tuple(each.to(torch.get_autocast_dtype(kind)) for each in states)


@lru_cache(maxsize=1)
def _kernel() -> Kernel | None:
    """PyTorch's, where this release has it."""
    if find_spec(MODULE) is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    kernel: Kernel = varlen_attn
    return kernel if inspect.signature(kernel).parameters.keys() >= NEEDS else None


def attend(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of a packed row of N tokens.

    Args:
        kernel: PyTorch's `varlen_attn`.
        query: of shape (1, heads, N, size).
        key, value: likewise; they may have fewer heads.
        layout: of the row.
        scaling: of the scores; None: one over the root of ``size``.
        window: how many tokens back a layer looks, itself among them; None: all.

    Returns:
        Of shape (1, N, heads, size).
    """
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    texts = _texts(layout, query.device)
    found = kernel(
        queries.contiguous(),
        keys.index_select(0, texts.keys),
        values.index_select(0, texts.keys),
        texts.query_ends,
        texts.key_ends,
        texts.longest_query,
        texts.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return found[None]


@dataclass(frozen=True)
class Texts:
    """The texts of a packed row, as the kernel takes them.

    Attributes:
        keys: place of the keys of each text in the row, text by text.
        query_ends, key_ends: where those of each text end, after a 0; int32.
        longest_query, longest_key: the most of one text.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


def forget_texts() -> None:
    """Those of the last batches."""
    _texts.cache_clear()


@lru_cache(maxsize=2)  # every layer of a batch asks
def _texts(layout: PackedLayout, device: torch.device) -> Texts:
    """Of each pair its prompt with the chosen answer, and the rejected one, which sees its prompt too."""
    queries: list[int] = []
    keys: list[range | list[int]] = []
    for pair in layout.pairs:
        middle, end = pair.start + pair.prompt + pair.chosen, pair.start + len(pair)
        queries.append(middle - pair.start)
        keys.append(range(pair.start, middle))
        if pair.rejected:
            queries.append(pair.rejected)
            keys.append([*range(pair.start, pair.start + pair.prompt), *range(middle, end)])
    return Texts(
        torch.tensor(list(chain.from_iterable(keys)), device=device),
        _ends(queries, device),
        _ends([len(places) for places in keys], device),
        max(queries),
        max(map(len, keys)),
    )


def _ends(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)
