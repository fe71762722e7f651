"""Prompts of a step that stand in held-out sets, or in steps before it, too. Pure functions on hashes of prompts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sdpo_plugin.partition import Partition, rows_also_in
from sdpo_plugin.plan import Overlap
from sdpo_plugin.rows import Keys


def overlaps(
    steps: Sequence[tuple[str, Keys]], heldout: Mapping[str, Keys], growing: Partition | None = None
) -> Iterator[Overlap]:
    """Where prompts of a step stand elsewhere too.

    Args:
        steps: name of each, and the prompts of its rows.
        heldout: the prompts of each held-out set, by its name.
        growing: the rows of each step in the pool, where a step has all rows of the step before it on purpose: then
            its own rows alone are looked for there, and in no earlier step, whose rows the step before has as well.
    """
    for index, (name, prompts) in enumerate(steps):
        if growing is None:
            own, earlier = prompts, steps[:index]
        else:
            before = growing[index - 1] if index else growing[0][:0]
            own, earlier = prompts[~np.isin(growing[index], before)], steps[max(0, index - 1) : index]
        found = [(f"step {other}", rows_also_in(own, known)) for other, known in earlier]
        found += [(f"held-out {other}", rows_also_in(prompts, known)) for other, known in heldout.items()]
        for other, count in found:
            if count:
                yield Overlap(name, other, count)
