"""A reference that moves within a step: when it is made again. Pure functions.

The hard update of TR-DPO (arXiv 2404.09656) after every N updates, or, as in 2D-Curri-DPO (arXiv 2504.07856), when the
policy has gone too far from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_plugin.schema import STRICT, Count

WINDOW = 10  # updates over which the distance to the reference is averaged: one batch alone says little


@dataclass(frozen=True)
class RefreshRule:
    """When the reference of a step is made again by the policy as it stands; exactly one of both is set.

    Attributes:
        every: updates from one refresh to the next.
        kl_above: distance between policy and reference, in nats an answer, above which it is refreshed.
    """

    __pydantic_config__ = STRICT

    every: Count | None = None
    kl_above: float | None = None

    def __str__(self) -> str:
        return f"every {self.every:,} updates" if self.kl_above is None else f"above {self.kl_above:g} nats"


@dataclass(frozen=True)
class Refresh:
    """One refresh.

    Attributes:
        update: updates of the step that were made before it.
        kl: distance between policy and the reference before it, in nats an answer; None where it was not estimated.
        num_rows: rows whose log-probs were computed.
    """

    __pydantic_config__ = STRICT

    update: Count
    kl: float | None
    num_rows: Count


def half_mean_square(total: float, count: int) -> float:
    """KL(π‖π_ref) to second order out of the sum of squared log-ratios of ``count`` answers, in nats an answer.

    As ``measures.kl_to_base``, on the rows of one update: answers of the data, not the policy's own.
    """
    return 0.5 * total / count


def distance(estimates: Sequence[float]) -> float | None:
    """The mean of the estimates since the last refresh, one an update, of the last 10 at most; None without any."""
    last = estimates[-WINDOW:]
    return sum(last) / len(last) if last else None


def is_due(rule: RefreshRule, update: int, made_at: int, num_updates: int, estimates: Sequence[float]) -> bool:
    """Whether the reference is made again before the next update.

    It depends on nothing but these, so that a run that is resumed decides as the one that died would have.

    Args:
        rule: of the step.
        update: updates of the step that were made.
        made_at: those that were made when its reference was made; 0: the one it began with.
        num_updates: of the step; after the last one nothing reads a reference.
        estimates: of the distance, one for each update since then.
    """
    if not made_at < update < num_updates:
        return False
    if rule.every is not None:
        return update - made_at >= rule.every
    found = distance(estimates)
    assert rule.kl_above is not None
    return found is not None and found > rule.kl_above


def read_until(rule: RefreshRule, made_at: int, num_updates: int) -> int:
    """The update before which a reference made at ``made_at`` is read: that of the next refresh, where it is known."""
    return num_updates if rule.every is None else min(made_at + rule.every, num_updates)
