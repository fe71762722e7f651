"""From a pool of rows to the rows of each step. Pure functions on arrays; knows neither data sets nor models.

A pool is the concatenation of its sources, so row numbers are global: source 0 holds rows 0 … n_0 − 1, and so on. A
partition is one array of row numbers per step; every row of the pool is in exactly one of them, but where
``easy_to_hard_rows`` is asked to leave the hardest out, or to have steps grow.
"""

from collections.abc import Sequence

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

    The steps have the sizes of ``step_sizes``, and after each source every step holds its share of the pool so far,
    rounded up or down; so of each source it holds its share within 2 rows, however many sources and steps there are.

    Raises:
        ConfigError: a step would get no row.
    """
    num_rows = sum(source_sizes)
    totals = np.asarray(step_sizes(num_rows, fractions), dtype=np.int64)
    generator = np.random.default_rng(seed)
    steps: list[list[Rows]] = [[] for _ in fractions]
    given, first = np.zeros(len(totals), dtype=np.int64), 0
    for size in source_sizes:
        seen = first + size
        # Whole numbers: each step's next row falls due where its share of the pool so far reaches it. What is due is
        # given, then what is due soonest among the steps below their share. Such a schedule always works out
        # (R. Tijdeman, "The chairman assignment problem", Discrete Math. 32, 1980).
        least = np.maximum(totals * seen // num_rows, given)
        may_have_more = np.flatnonzero(least * num_rows < totals * seen)
        due = (least[may_have_more] + 1) / totals[may_have_more]
        held = least.copy()
        held[may_have_more[np.argsort(due, kind="stable")[: seen - int(least.sum())]]] += 1
        order = first + generator.permutation(size).astype(np.int64)
        for step, rows in zip(steps, _cut(order, (held - given).tolist()), strict=True):
            step.append(rows)
        given, first = held, seen
    return tuple(np.sort(np.concatenate(parts)) for parts in steps)


def easy_to_hard_sources(source_sizes: Sequence[int], accuracies: Sequence[float]) -> tuple[list[int], Partition]:
    """Sources in descending order of M_0's reference-free accuracy, each a step (arXiv 2403.19270 v2, §3.2).

    Returns:
        The sources' numbers in that order (ties: in the order of the config), and the partition.
    """
    order = [int(source) for source in np.argsort(-np.asarray(accuracies, dtype=np.float64), kind="stable")]
    parts = natural(source_sizes)
    return order, tuple(parts[source] for source in order)


def easy_to_hard_rows(
    gammas: NDArray[np.floating], fractions: Sequence[float], drop_hardest: float = 0.0, *, cumulative: bool = False
) -> Partition:
    """All rows ranked by γ under M_0 (high is easy) and cut into steps of these shares; ties by row number.

    Args:
        gammas: of each row of the pool, shape (N,).
        fractions: share of each step in the rows that are left when the hardest are not; they sum to 1.
        drop_hardest: share of the pool that is in no step (arXiv 2502.09650).
        cumulative: each step has the rows of all steps before it as well (arXiv 2605.26315).

    Raises:
        ConfigError: a step would get no row.
    """
    order = np.argsort(-gammas, kind="stable").astype(np.int64)[: rows_kept(len(gammas), drop_hardest)]
    parts = _cut(order, step_sizes(len(order), fractions))
    if cumulative:
        parts = tuple(np.concatenate(parts[:end]) for end in range(1, len(parts) + 1))
    return tuple(np.sort(rows) for rows in parts)


def easiest(gammas: NDArray[np.floating], num_rows: int) -> Rows:
    """The rows with the highest γ, ascending, shape (num_rows,); ties by row number."""
    return np.sort(np.argsort(-gammas, kind="stable")[:num_rows]).astype(np.int64)


def rows_kept(num_rows: int, drop_hardest: float) -> int:
    """The rows of a pool that are left without the share ``drop_hardest``, rounded up."""
    return num_rows - int(np.floor(num_rows * drop_hardest + 1e-9))


def rows_in_none(parts: Partition, num_rows: int) -> Rows:
    """The rows of a pool that no step has, ascending."""
    return np.setdiff1d(np.arange(num_rows, dtype=np.int64), np.concatenate(parts))


def rows_by_source(part: Rows, source_sizes: Sequence[int]) -> list[Rows]:
    """The rows of a step, which ascend, by their source, counted from the beginning of that source."""
    ends = np.cumsum(np.asarray(source_sizes, dtype=np.int64))
    bounds = np.searchsorted(part, np.concatenate([[0], ends]))
    starts = ends - source_sizes
    return [part[bounds[s] : bounds[s + 1]] - starts[s] for s in range(len(source_sizes))]


def rows_also_in(prompts: NDArray[np.uint64], others: NDArray[np.uint64]) -> int:
    """The number of rows with a prompt that is among ``others``; prompts are given by their hashes."""
    return int(np.isin(prompts, others).sum())


def _cut(order: Rows, sizes: Sequence[int]) -> Partition:
    assert sum(sizes) == len(order)
    return tuple(np.split(order, np.cumsum(sizes)[:-1]))
