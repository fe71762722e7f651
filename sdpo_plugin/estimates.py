"""Estimates from some rows: a number with its 95 % confidence interval. Pure functions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # 95 % of a normal distribution lie within it


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = Z) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927); z = 1.96 for 95 %."""
    share = successes / trials
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    return Interval(share, float(max(centre - spread, 0.0)), float(min(centre + spread, 1.0)))


def mean(values: NDArray[np.floating]) -> Interval | None:
    """The mean of values of shape (n,) with 1.96 standard errors on either side; None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = float(values.mean())
    error = Z * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Interval(centre, centre - error, centre + error)
