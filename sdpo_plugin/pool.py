"""Of a large pool fewer rows: how many of each source, and which. Pure functions on numbers."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.errors import ConfigError


def drawn_sizes(source_sizes: Sequence[int], max_rows: int | None, weights: Sequence[float] | None) -> list[int]:
    """The rows that each source keeps.

    Args:
        source_sizes: rows that each has.
        max_rows: of the pool that is drawn; None: the largest pool in which the weights hold.
        weights: of the sources, in proportion; None: their sizes.

    Raises:
        ConfigError: a source would keep no row.
    """
    # Fractions of whole numbers: 0.1 and 0.3 are meant as they are written, and every machine rounds the same way.
    parts = [Fraction(str(weight)) for weight in (source_sizes if weights is None else weights)]
    assert len(parts) == len(source_sizes)
    if max_rows is None:
        max_rows = math.floor(min(size / part for size, part in zip(source_sizes, parts, strict=True)) * sum(parts))
    sizes = shared_out(max_rows, parts, source_sizes)
    if min(sizes) < 1:
        of = "" if weights is None else f", shared out by weights: {list(weights)},"
        raise ConfigError(
            f"sdpo.partition: a pool of {max_rows} rows{of} takes {sizes} rows of the sources, which have "
            f"{list(source_sizes)}, and each has to keep at least one; set a larger max_rows or weights that are "
            "closer to each other, or leave the source out of datasets:."
        )
    return sizes


def shared_out(num_rows: int, parts: Sequence[Fraction], caps: Sequence[int]) -> list[int]:
    """Whole numbers in the proportions ``parts``, each at most its cap, that sum to ``num_rows`` or to all caps.

    What is more than a cap goes to the others, in their proportions. Of what is left over after rounding down, the
    largest remainders get one each, the earlier one of equals.
    """
    left, open_ones, sizes = min(num_rows, sum(caps)), list(range(len(caps))), [0] * len(caps)
    while open_ones:
        total = sum(parts[number] for number in open_ones)
        exact = {number: left * parts[number] / total for number in open_ones}
        full = [number for number in open_ones if exact[number] >= caps[number]]
        if not full:
            break
        for number in full:
            sizes[number] = caps[number]
        left -= sum(caps[number] for number in full)
        open_ones = [number for number in open_ones if number not in full]
    for number in open_ones:
        sizes[number] = math.floor(exact[number])
    left -= sum(sizes[number] for number in open_ones)
    for number in sorted(open_ones, key=lambda number: sizes[number] - exact[number])[:left]:
        sizes[number] += 1
    return sizes


def drawn_rows(source: int, size: int, keep: int, seed: int) -> NDArray[np.int64]:
    """``keep`` of the ``size`` rows of source number ``source``, ascending, shape (keep,); fewer are among more.

    It depends on these numbers alone: ranks, restarts and worker processes agree on it.
    """
    order = np.random.default_rng([seed, source]).permutation(size)
    return np.sort(order[:keep]).astype(np.int64)
