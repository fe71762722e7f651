"""Numbers about tables of log-probs: γ, its quantiles, both accuracies. Pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.tables import LogProbTable


@dataclass(frozen=True)
class GammaStats:
    """Mean and quantiles of γ over a data set, in nats; ``per_token_mean`` in nats per token."""

    mean: float
    median: float
    q05: float
    q95: float
    per_token_mean: float


def gamma(table: LogProbTable) -> NDArray[np.float64]:
    """γ_π(x, y_w, y_l) = log π(y_w|x) − log π(y_l|x), shape (N,), in nats (arXiv 2403.19270, §3.3)."""
    return table.chosen.astype(np.float64) - table.rejected.astype(np.float64)


def gamma_per_token(table: LogProbTable) -> NDArray[np.float64]:
    """γ with each log-prob divided by its number of tokens, shape (N,), in nats per token."""
    chosen = table.chosen.astype(np.float64) / np.maximum(table.chosen_tokens, 1)
    rejected = table.rejected.astype(np.float64) / np.maximum(table.rejected_tokens, 1)
    difference: NDArray[np.float64] = chosen - rejected
    return difference


def gamma_stats(table: LogProbTable) -> GammaStats:
    """Mean, median, 5 % and 95 % quantile of γ, and the mean of γ per token."""
    values = gamma(table)
    q05, median, q95 = np.quantile(values, [0.05, 0.5, 0.95])
    return GammaStats(float(values.mean()), float(median), float(q05), float(q95), float(gamma_per_token(table).mean()))


def reference_free_accuracy(table: LogProbTable) -> float:
    """Share of rows in which the model gives the chosen answer the higher log-prob, γ > 0; a tie counts as wrong.

    What orders the sources in arXiv 2403.19270 v2, §3.2: under the reference itself the implicit reward is 0 for
    every row.
    """
    return float((gamma(table) > 0).mean())


def implicit_reward_accuracy(table: LogProbTable, base: LogProbTable) -> float:
    """Share of rows in which the implicit reward against M_0 prefers the chosen answer, γ_π > γ_{M_0}.

    The reward accuracy that DPO trainers log, with the base model as reference: what training has changed, where
    `reference_free_accuracy` is ruled by answers of very different length.
    """
    assert table.rows_digest == base.rows_digest
    return float((gamma(table) > gamma(base)).mean())
