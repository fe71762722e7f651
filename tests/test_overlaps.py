"""Prompts that stand in several places, counted where that is no one's intention."""

import numpy as np

from sdpo_plugin.overlaps import overlaps
from sdpo_plugin.plan import Overlap
from sdpo_plugin.rows import Keys


def prompts(*hashes: int) -> Keys:
    return np.array(hashes, dtype=np.uint64)


def test_each_pair_of_steps_is_looked_at() -> None:
    steps = [("a", prompts(1, 2)), ("b", prompts(2, 2, 3)), ("c", prompts(1, 2, 4))]
    assert list(overlaps(steps, {})) == [
        Overlap("b", "step a", 2),
        Overlap("c", "step a", 2),
        Overlap("c", "step b", 1),
    ]


def test_held_out_sets_are_looked_at() -> None:
    steps, held = [("a", prompts(1, 2)), ("b", prompts(3, 5))], {"val": prompts(5), "none": prompts(9)}
    assert list(overlaps(steps, held)) == [Overlap("b", "held-out val", 1)]


def test_steps_that_grow_overlap_by_their_own_rows_alone() -> None:
    """Rows 0 to 5 of the pool. Step a has 1 and 4, b adds 0 and 5, c adds 2: row 5 has the prompt of row 1, row 2 that
    of row 0. That b and c have the rows of a is meant; row 2 is told once, for b has all that a has."""
    growing = tuple(np.array(rows, dtype=np.int64) for rows in ([1, 4], [0, 1, 4, 5], [0, 1, 2, 4, 5]))
    pool = prompts(10, 11, 10, 13, 14, 11)
    steps = [(name, pool[rows]) for name, rows in zip("abc", growing, strict=True)]
    assert list(overlaps(steps, {}, growing)) == [Overlap("b", "step a", 1), Overlap("c", "step b", 1)]


def test_steps_that_grow_are_compared_whole_with_held_out_sets() -> None:
    """Row 0 is held out and in both steps."""
    growing = tuple(np.array(rows, dtype=np.int64) for rows in ([0], [0, 1]))
    steps = [("a", prompts(10)), ("b", prompts(10, 11))]
    found = list(overlaps(steps, {"val": prompts(10)}, growing))
    assert found == [Overlap("a", "held-out val", 1), Overlap("b", "held-out val", 1)]
