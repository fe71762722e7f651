"""Numbers about tables of log-probs: γ, accuracies, drift from M_0, what a step changed. Pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin import estimates
from sdpo_plugin.estimates import Interval
from sdpo_plugin.tables import LogProbTable

Float = NDArray[np.float64]


@dataclass(frozen=True)
class GammaStats:
    """Mean and quantiles of γ over a data set, in nats; ``per_token_mean`` in nats per token."""

    mean: float
    median: float
    q05: float
    q25: float
    q75: float
    q95: float
    per_token_mean: float


def gamma(table: LogProbTable) -> Float:
    """γ_π(x, y_w, y_l) = log π(y_w|x) − log π(y_l|x), shape (N,), in nats (arXiv 2403.19270, §3.3)."""
    return table.chosen.astype(np.float64) - table.rejected.astype(np.float64)


def gamma_per_token(table: LogProbTable) -> Float:
    """γ with each log-prob divided by its number of tokens, shape (N,), in nats per token."""
    difference: Float = chosen_per_token(table) - rejected_per_token(table)
    return difference


def chosen_per_token(table: LogProbTable) -> Float:
    """log π(y_w|x) divided by its tokens, shape (N,), in nats per token."""
    return _per_token(table.chosen, table.chosen_tokens)


def rejected_per_token(table: LogProbTable) -> Float:
    """log π(y_l|x) divided by its tokens, shape (N,), in nats per token."""
    return _per_token(table.rejected, table.rejected_tokens)


def _per_token(log_probs: NDArray[np.float32], tokens: NDArray[np.int64]) -> Float:
    share: Float = log_probs.astype(np.float64) / np.maximum(tokens, 1)
    return share


def gamma_stats(table: LogProbTable) -> GammaStats:
    """Mean, median, quartiles, 5 % and 95 % quantile of γ, and the mean of γ per token."""
    values = gamma(table)
    q05, q25, median, q75, q95 = map(float, np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
    return GammaStats(float(values.mean()), median, q05, q25, q75, q95, float(gamma_per_token(table).mean()))


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
    _require_same_rows(table, base)
    return float((gamma(table) > gamma(base)).mean())


def log_ratios(table: LogProbTable, base: LogProbTable) -> tuple[Float, Float]:
    """log π(y|x) − log π_0(y|x) of chosen and rejected answers, each of shape (N,), in nats.

    β times them are the implicit rewards with M_0 as reference (arXiv 2305.18290, Eq. 5), which, unlike those against
    the reference of a step, do not begin at 0 again with each step.
    """
    _require_same_rows(table, base)
    chosen = table.chosen.astype(np.float64) - base.chosen.astype(np.float64)
    return chosen, table.rejected.astype(np.float64) - base.rejected.astype(np.float64)


def kl_to_base(table: LogProbTable, base: LogProbTable) -> float:
    """Half the mean square of the log-ratios of all answers, in nats an answer: an estimate of the distance from M_0.

    KL(π‖π_0) to second order, if the answers were the model's own (J. Schulman, Approximating KL divergence, 2020,
    k2); answers of a data set are not, so it compares the models of a run, and no run with another one.
    """
    return float(0.5 * np.mean(np.concatenate(log_ratios(table, base)) ** 2))


def longer_rewarded(table: LogProbTable, base: LogProbTable) -> Interval | None:
    """Share of pairs of unequal length whose longer answer has gained more than the shorter one, against M_0."""
    chosen, rejected = log_ratios(table, base)
    unequal = table.chosen_tokens != table.rejected_tokens
    if not unequal.any():
        return None
    longer_is_chosen = (table.chosen_tokens > table.rejected_tokens)[unequal]
    gained = np.where(longer_is_chosen, chosen[unequal] > rejected[unequal], rejected[unequal] > chosen[unequal])
    return estimates.wilson(int(gained.sum()), len(gained))


def num_unequal(table: LogProbTable) -> int:
    """Pairs whose answers differ in length."""
    return int((table.chosen_tokens != table.rejected_tokens).sum())


def longer_chosen(table: LogProbTable) -> float:
    """Share of pairs of unequal length whose chosen answer is the longer one; at least one pair is."""
    unequal = table.chosen_tokens != table.rejected_tokens
    return float((table.chosen_tokens > table.rejected_tokens)[unequal].mean())


@dataclass(frozen=True)
class Change:
    """What became of the same pairs from one model to a later one.

    Attributes:
        num_rows: pairs.
        gamma: mean change of γ in nats.
        q25, median, q75: quartiles of that change: a mean that rises may hide pairs that fall (arXiv 2606.19744).
        accuracy: change of the reference-free accuracy.
        lost, won: share of the pairs with γ > 0 before and not after, and the other way round.
    """

    num_rows: int
    gamma: Interval
    q25: float
    median: float
    q75: float
    accuracy: Interval
    lost: float
    won: float


def change(before: LogProbTable, after: LogProbTable) -> Change | None:
    """The paired change between two models; None for fewer than two pairs."""
    _require_same_rows(before, after)
    was, now = gamma(before), gamma(after)
    right = (now > 0).astype(np.float64) - (was > 0)
    of_gamma, of_accuracy = estimates.mean(now - was), estimates.mean(right)
    if of_gamma is None or of_accuracy is None:
        return None
    q25, median, q75 = map(float, np.quantile(now - was, [0.25, 0.5, 0.75]))
    return Change(
        len(was), of_gamma, q25, median, q75, of_accuracy, float((right < 0).mean()), float((right > 0).mean())
    )


def _require_same_rows(one: LogProbTable, other: LogProbTable) -> None:
    assert one.rows_digest == other.rows_digest, "tables of other rows cannot be compared"


@dataclass(frozen=True)
class OfAModel:
    """The measures of one model on one set of pairs, by the names that the report gives them."""

    gamma: float
    gamma_median: float
    gamma_q05: float
    gamma_q25: float
    gamma_q75: float
    gamma_q95: float
    gamma_per_token: float
    reference_free_accuracy: float
    chosen_log_prob_per_token: float
    rejected_log_prob_per_token: float

    @classmethod
    def of(cls, table: LogProbTable) -> "OfAModel":
        """Measure a table."""
        stats = gamma_stats(table)
        return cls(
            gamma=stats.mean,
            gamma_median=stats.median,
            gamma_q05=stats.q05,
            gamma_q25=stats.q25,
            gamma_q75=stats.q75,
            gamma_q95=stats.q95,
            gamma_per_token=stats.per_token_mean,
            reference_free_accuracy=reference_free_accuracy(table),
            chosen_log_prob_per_token=float(chosen_per_token(table).mean()),
            rejected_log_prob_per_token=float(rejected_per_token(table).mean()),
        )


@dataclass(frozen=True)
class AgainstBase:
    """The measures of M_t against M_0 on one set of pairs, likewise."""

    implicit_reward_accuracy: float
    chosen_log_ratio: float
    rejected_log_ratio: float
    log_ratio_margin: float
    kl_to_base: float

    @classmethod
    def of(cls, table: LogProbTable, base: LogProbTable) -> "AgainstBase":
        """Measure a table beside that of M_0."""
        chosen, rejected = log_ratios(table, base)
        return cls(
            implicit_reward_accuracy=implicit_reward_accuracy(table, base),
            chosen_log_ratio=float(chosen.mean()),
            rejected_log_ratio=float(rejected.mean()),
            log_ratio_margin=float((gamma(table) - gamma(base)).mean()),
            kl_to_base=kl_to_base(table, base),
        )
