"""From a pool of rows to the rows of each step. Pure functions on arrays; knows neither data sets nor models.

A pool is the concatenation of its sources, so row numbers are global: source 0 holds rows 0 … n_0 − 1, and so on. A
partition is one array of row numbers per step; every row of the pool is in exactly one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.errors import ConfigError

Rows = NDArray[np.int64]
Partition = tuple[Rows, ...]


def step_sizes(num_rows: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that follow ``fractions`` and sum to ``num_rows``: largest remainders get the rows left over.

    Args:
        num_rows: rows to share out.
        fractions: share of each step; they sum to 1.

    Raises:
        ConfigError: a step would get no row.
    """
    exact = np.asarray(fractions, dtype=np.float64) * num_rows
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    left = num_rows - int(sizes.sum())
    # argsort is stable, so equal remainders go to the earlier step, on every machine.
    sizes[np.argsort(-(exact - sizes), kind="stable")[:left]] += 1
    if sizes.min() < 1:
        raise ConfigError(
            f"sdpo.partition: a pool of {num_rows} rows cut into {len(sizes)} steps gives sizes {sizes.tolist()}, "
            "and a step needs at least one row; use fewer steps, larger fractions or more data."
        )
    return [int(size) for size in sizes]


def natural(source_sizes: Sequence[int]) -> Partition:
    """Each source is a step, in the order given (the natural split)."""
    return _cut(np.arange(sum(source_sizes), dtype=np.int64), source_sizes)


def random(num_rows: int, fractions: Sequence[float], seed: int) -> Partition:
    """Rows drawn into steps of these shares whatever their source (arXiv 2403.19270 v2, `sDPO Rand.`).

    The permutation depends on ``num_rows`` and ``seed`` alone: ranks, restarts and worker processes agree on it.
    """
    order = np.random.default_rng(seed).permutation(num_rows).astype(np.int64)
    return tuple(np.sort(rows) for rows in _cut(order, step_sizes(num_rows, fractions)))


def stratified(source_sizes: Sequence[int], fractions: Sequence[float], seed: int) -> Partition:
    """Every step holds the same share of every source (arXiv 2403.19270 v2, `sDPO Strat.`).

    Sources are cut one by one with ``step_sizes``; what rounding leaves over is steered so that the steps as a whole
    keep their shares too, also with many sources of one row.

    Raises:
        ConfigError: a step would get no row.
    """
    totals = np.asarray(step_sizes(sum(source_sizes), fractions), dtype=np.int64)
    generator = np.random.default_rng(seed)
    steps: list[list[Rows]] = [[] for _ in fractions]
    given = np.zeros(len(totals), dtype=np.int64)
    shares = np.asarray(fractions, dtype=np.float64)
    first = 0
    for number, size in enumerate(source_sizes):
        seen = first + size
        last = number == len(source_sizes) - 1
        # What each step should hold after this source, less what it holds: errors do not pile up over sources.
        wanted = (totals if last else shares * seen) - given
        sizes = _round_to(np.maximum(wanted, 0.0), size)
        order = first + generator.permutation(size).astype(np.int64)
        for step, rows in zip(steps, _cut(order, sizes.tolist()), strict=True):
            step.append(rows)
        given += sizes
        first = seen
    return tuple(np.sort(np.concatenate(parts)) for parts in steps)


def easy_to_hard_sources(source_sizes: Sequence[int], accuracies: Sequence[float]) -> tuple[list[int], Partition]:
    """Sources in descending order of M_0's reward accuracy, each a step (arXiv 2403.19270 v2, §3.2).

    Returns:
        The sources' numbers in that order (ties: in the order of the config), and the partition.
    """
    order = [int(source) for source in np.argsort(-np.asarray(accuracies, dtype=np.float64), kind="stable")]
    parts = natural(source_sizes)
    return order, tuple(parts[source] for source in order)


def easy_to_hard_rows(scores: NDArray[np.floating], fractions: Sequence[float]) -> Partition:
    """All rows ranked by ``scores`` (γ under M_0, high is easy) and cut into steps of these shares; ties by row number.

    Raises:
        ConfigError: a step would get no row.
    """
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    return tuple(np.sort(rows) for rows in _cut(order, step_sizes(len(scores), fractions)))


@dataclass(frozen=True)
class Interval:
    """A proportion with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = 1.959964) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927); z = 1.96 for 95 %."""
    share = successes / trials
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    return Interval(share, float(max(centre - spread, 0.0)), float(min(centre + spread, 1.0)))


def rows_also_in(prompts: NDArray[np.uint64], others: NDArray[np.uint64]) -> int:
    """How many rows have a prompt that stands among ``others``; prompts are given by their hashes."""
    return int(np.isin(prompts, others).sum())


def _round_to(exact: NDArray[np.floating], total: int) -> Rows:
    """Whole numbers near ``exact`` that sum to ``total``, by largest remainder."""
    scaled = exact * (total / exact.sum()) if exact.sum() > 0 else np.full(len(exact), total / len(exact))
    sizes = np.floor(scaled + 1e-9).astype(np.int64)
    left = total - int(sizes.sum())
    sizes[np.argsort(-(scaled - sizes), kind="stable")[:left]] += 1
    return sizes


def _cut(order: Rows, sizes: Sequence[int]) -> Partition:
    assert sum(sizes) == len(order)
    return tuple(np.split(order, np.cumsum(sizes)[:-1]))
