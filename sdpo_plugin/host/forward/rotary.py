"""Rotary positions that a model scales by the longest row of a batch: a row's log-probs then depend on its neighbours.

A reference table is made in other batches than those of the training, and so is no reference for such rows. Which rows
have other positions beside a longer one is tried with the model's own rotary embedding.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from sdpo_plugin.errors import DataError

SAME = 1e-5  # of a sine or cosine; another scaling moves those of far places by tenths


def require_own_positions(model: torch.nn.Module, lengths: Mapping[str, NDArray[np.int64]], what: str) -> None:
    """Refuse rows that would change the positions of the rows beside them.

    Args:
        model: with the embeddings of its positions.
        lengths: of the rows of each set, in tokens, as they are cut.
        what: how a message calls the model.

    Raises:
        DataError: it names the set, the scaling and the length from which on it is another one.
    """
    shortest = min(int(found.min()) for found in lengths.values())
    longest = max(int(found.max()) for found in lengths.values())
    for rotary, layer_type, kind in _scaled_by_length(model):
        limit = _longest_with_the_same(partial(_positions, rotary, layer_type), shortest, longest)
        if limit is None:
            continue
        name = next(name for name, found in lengths.items() if (found > limit).any())
        raise DataError(
            f"{name}: {int((lengths[name] > limit).sum()):,} of {len(lengths[name]):,} rows are longer than {limit:,} "
            f"tokens (the longest row has {longest:,}), and {what} scales the positions of all rows of a batch by "
            f"its longest one (rope_type: {kind}): the log-probs of a row would depend on the rows beside it, and a "
            f"reference table has other batches than the training. Set sequence_len: {limit}, with which the host "
            "leaves longer rows out."
        )


def _scaled_by_length(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str | None, str]]:
    """Rotary embeddings that transformers' `dynamic_rope_update` scales anew in each pass, by type of layer."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]:
            if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind):
                yield module, layer_type, kind


def _positions(rotary: torch.nn.Module, layer_type: str | None, length: int) -> torch.Tensor:
    """Cosines and sines of a row, shape (2, length, size of a head), by an embedding that has seen no other row."""
    fresh, places = type(rotary)(rotary.config), torch.arange(length)[None]
    found = fresh(torch.empty(1), places, layer_type) if layer_type else fresh(torch.empty(1), places)
    return torch.stack([part[0] for part in found])


def _longest_with_the_same(positions: partial[torch.Tensor], shortest: int, longest: int) -> int | None:
    """The longest row with the positions of the shortest one; None where all rows have them."""
    own = positions(shortest)

    def differs(length: int) -> bool:
        return not torch.allclose(positions(length)[:, :shortest], own, rtol=0.0, atol=SAME)

    if not differs(longest):
        return None
    return shortest - 1 + bisect_left(range(shortest, longest + 1), True, key=differs)
