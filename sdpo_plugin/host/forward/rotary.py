"""Rotary positions that a model scales by the longest row of a batch: a row's log-probs then depend on its neighbours.

A reference table is made in other batches than those of the training, and so is no reference for such rows. Two of
transformers' scalings are worked out anew in each pass (`modeling_rope_utils.dynamic_rope_update`): `longrope` (arXiv
2402.13753) has one set of factors up to a length and another one beyond it; `dynamic` has others for each length.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from sdpo_plugin.errors import DataError

LONGROPE, DYNAMIC = "longrope", "dynamic"


def require_own_positions(
    model: torch.nn.Module, lengths: Mapping[str, NDArray[np.int64]], what: str, *, alone: bool
) -> None:
    """Refuse rows that would change the positions of the rows beside them, if they came into one batch.

    Args:
        model: with the embeddings of its positions.
        lengths: of the rows of sets that share batches, by the name of the set, in tokens, as they are cut.
        what: how a message calls the model.
        alone: every pair is a batch of its own, in tables as in the training.

    Raises:
        DataError: it names the set, the scaling and the length from which on it is another one.
    """
    shortest = min(int(found.min()) for found in lengths.values())
    longest = max(int(found.max()) for found in lengths.values())
    for kind, limit in _scalings(model):
        is_one_scaling = kind == LONGROPE and (alone or shortest > limit)
        if longest <= limit or shortest == longest or is_one_scaling:
            continue
        name = next(name for name, found in lengths.items() if (found > limit).any())
        alone_too = "; or packed: false under sdpo, micro_batch_size: 1 and eval_batch_size: 1, in one process a GPU"
        raise DataError(
            f"{name}: {int((lengths[name] > limit).sum()):,} of {len(lengths[name]):,} rows are longer than {limit:,} "
            f"tokens (the longest row has {longest:,}), and {what} scales the positions of all rows of a batch by its "
            f"longest one (rope_type: {kind}): the log-probs of a row would depend on the rows beside it, and a "
            f"reference table has other batches than the training. Set sequence_len: {limit}, with which the host "
            f"leaves longer rows out (under sdpo.steps a step may have its own){alone_too if kind == LONGROPE else ''}."
        )


def _scalings(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Such scalings of a model, by the type of its layers, with the length beyond which each is another one."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]:
            if kind == LONGROPE:
                parameters = module.config.rope_parameters
                own = parameters if layer_type is None else parameters[layer_type]
                yield kind, int(own["original_max_position_embeddings"])
            elif isinstance(kind, str) and DYNAMIC in kind:
                yield kind, int(module.config.max_position_embeddings)
