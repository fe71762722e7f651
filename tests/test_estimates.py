"""Intervals around shares and means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.estimates import Interval, mean, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # z² = 3.8415; centre (0.8 + 3.8415/20)/(1 + 3.8415/10) = 0.7167,
        # half-width 1.96 · √(0.8 · 0.2/10 + 3.8415/400)/1.38415 = 0.2266
        pytest.param(8, 10, 0.4902, 0.9433, id="8-of-10"),
        pytest.param(0, 10, 0.0, 0.2775, id="none"),  # z²/(10 + z²)
        pytest.param(10, 10, 0.7225, 1.0, id="all"),
        pytest.param(1, 2, 0.0945, 0.9055, id="1-of-2"),  # ½ ± ½ · z/√(2 + z²) = ½ ± ½ · 0.8110
        pytest.param(0, 1, 0.0, 0.7935, id="0-of-1"),  # z²/(1 + z²)
        pytest.param(50, 100, 0.4038, 0.5962, id="50-of-100"),  # ½ ± ½ · z/√(100 + z²) = ½ ± ½ · 0.1923
        pytest.param(5300, 10000, 0.5202, 0.5398, id="many"),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert (interval.value, interval.low, interval.high) == (
        successes / trials,
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


def test_wilson_with_another_confidence() -> None:
    # z = 1: centre (0.5 + 1/8)/(1 + 1/4) = ½, half-width √(0.25/4 + 1/64)/(5/4) = √(5/64)/(5/4) = 0.2236
    interval = wilson(2, 4, z=1.0)
    assert (interval.low, interval.high) == (pytest.approx(0.5 - 0.05**0.5), pytest.approx(0.5 + 0.05**0.5))


@given(data=st.data(), trials=st.integers(1, 10**6))
def test_wilson_holds_the_share_lies_in_0_to_1_and_mirrors(data: st.DataObject, trials: int) -> None:
    successes = data.draw(st.integers(0, trials))
    interval, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1
    assert (mirrored.low, mirrored.high) == (
        pytest.approx(1 - interval.high, abs=1e-12),
        pytest.approx(1 - interval.low, abs=1e-12),
    )


def test_wilson_gives_numbers_that_json_can_hold() -> None:
    assert {type(value) for value in vars(wilson(3, 7)).values()} == {float}


# --- means ---


def test_mean() -> None:
    # 1, 2, 3, 6: mean 3, deviations −2, −1, 0, 3: variance 14/3, standard error √(14/3/4) = 1.0801
    interval = mean(np.array([1.0, 2.0, 3.0, 6.0]))
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == pytest.approx((3.0, 3 - 2.1170, 3 + 2.1170), abs=1e-4)


def test_mean_of_equal_values_has_no_width() -> None:
    assert mean(np.array([2.0, 2.0])) == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0]], ids=["none", "one"])
def test_mean_of_fewer_than_two_has_no_interval(values: list[float]) -> None:
    assert mean(np.array(values)) is None
