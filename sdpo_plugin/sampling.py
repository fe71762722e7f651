"""The rows of D_t on which every model of a run is compared: all of them, or some that are drawn once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin import digests
from sdpo_plugin.plan import StepPlan


@dataclass(frozen=True)
class Sample:
    """Rows of one D_t.

    Attributes:
        rows: their numbers, ascending, shape (n,).
        digest: of these rows: that of D_t where they are all of it.
    """

    rows: NDArray[np.int64]
    digest: str


def sample(step: StepPlan, max_rows: int, seed: int) -> Sample:
    """The same rows in every process, and under every model, so that the columns of a matrix can be compared.

    Args:
        step: t; its rows are known.
        max_rows: at most so many of them.
        seed: of the draw, which each step makes for itself.
    """
    assert step.rows_digest is not None, "the rows of the step are known"
    if step.num_rows <= max_rows:
        return Sample(np.arange(step.num_rows), step.rows_digest)
    drawn = np.random.default_rng([seed, step.index]).choice(step.num_rows, max_rows, replace=False)
    rows = np.sort(drawn).astype(np.int64)
    return Sample(rows, digests.of_arrays([rows], f"{step.rows_digest}\n"))
