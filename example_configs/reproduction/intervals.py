"""Means over a few seeds with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, by degrees of freedom; a seed less than there are.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval; `half` is infinite for a single value."""

    mean: float
    half: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds with the interval of Student's t: t · s / √n.

    Raises:
        KeyError: there are more than 12 values.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.inf)
    return Estimate(mean, T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values)))


def paired(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean of the differences seed by seed, so that what a seed does to both is not in the interval."""
    return estimate([value - other for value, other in zip(values, others, strict=True)])
