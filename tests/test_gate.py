"""The ln 2 gate: what passes, what stops a step, and what the message says."""

import itertools
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import StartGateError
from sdpo_plugin.gate import StartLoss, check_start, start_loss, tolerance_nats

LN_2 = 0.6931471805599453
FULL, HALF = 0.01, 1.0
SIGMOID = StartLoss(LN_2, 0.05)  # −log σ falls by β/2 a nat


def start(
    loss: float = LN_2, margin: float = 0.0, tolerance: float = FULL, expected: StartLoss | None = SIGMOID
) -> None:
    """A first batch at β = 0.1: the margin may be off by 0.1 · tolerance, the sigmoid loss by 2 · 0.05 · tolerance."""
    check_start(step="orca", loss=loss, margin=margin, beta=0.1, tolerance=tolerance, expected=expected)


@pytest.mark.parametrize(
    ("half_precision", "max_tokens", "nats"),
    [
        pytest.param(False, 512, 0.01, id="full-as-measured"),
        pytest.param(False, 16, 0.01, id="full-short-rows-get-no-less"),
        pytest.param(False, 2048, 0.02, id="full-long-rows"),  # 0.01 · √(2048/512) = 0.01 · 2
        pytest.param(True, 512, 1.0, id="half-as-measured"),
        pytest.param(True, 1, 1.0, id="half-short-rows-get-no-less"),
        pytest.param(True, 4608, 3.0, id="half-long-rows"),  # 1 · √(4608/512) = 3
    ],
)
def test_tolerance(half_precision: bool, max_tokens: int, nats: float) -> None:
    assert tolerance_nats(half_precision, max_tokens) == pytest.approx(nats, rel=1e-12)


def test_ln_2_passes_without_any_tolerance() -> None:
    start(loss=math.log(2), margin=0.0, tolerance=0.0)


@pytest.mark.parametrize(
    ("loss", "margin", "tolerance"),
    [
        # allowed: 0.1 · 0.01 = 0.001
        pytest.param(LN_2 + 0.0009, 0.0, FULL, id="loss-above"),
        pytest.param(LN_2 - 0.0009, 0.0, FULL, id="loss-below"),
        pytest.param(LN_2, 0.0009, FULL, id="margin-above"),
        pytest.param(LN_2, -0.0009, FULL, id="margin-below"),
        # allowed: 0.1 · 1 = 0.1
        pytest.param(LN_2 + 0.05, -0.09, HALF, id="half-precision"),
    ],
)
def test_noise_within_tolerance_passes(loss: float, margin: float, tolerance: float) -> None:
    start(loss, margin, tolerance)


@pytest.mark.parametrize(
    ("loss", "margin", "tolerance", "seen"),
    [
        # 0.69315 + 0.0021 = 0.69525; the margin printed is always signed
        pytest.param(LN_2 + 0.0021, 0.0, FULL, "loss 0.6952 and mean reward margin +0.0000", id="loss-above"),
        # 0.69315 − 0.0031 = 0.69005
        pytest.param(LN_2 - 0.0031, 0.0, FULL, "loss 0.6900 and mean reward margin +0.0000", id="loss-below"),
        pytest.param(LN_2, 0.0011, FULL, "loss 0.6931 and mean reward margin +0.0011", id="margin-above"),
        pytest.param(LN_2, -0.0011, FULL, "loss 0.6931 and mean reward margin -0.0011", id="margin-below"),
        # what passes in half precision is far off in full precision; 0.69315 + 0.05 = 0.74315
        pytest.param(LN_2 + 0.05, -0.09, FULL, "loss 0.7431 and mean reward margin -0.0900", id="half-as-full"),
        pytest.param(LN_2, 0.11, HALF, "loss 0.6931 and mean reward margin +0.1100", id="half-precision"),
        pytest.param(math.nan, 0.0, HALF, "loss nan and mean reward margin +0.0000", id="nan-loss"),
        pytest.param(LN_2, math.nan, HALF, "loss 0.6931 and mean reward margin +nan", id="nan-margin"),
        pytest.param(math.inf, 0.0, HALF, "loss inf and mean reward margin +0.0000", id="inf-loss"),
    ],
)
def test_wrong_start_is_refused_with_its_values(loss: float, margin: float, tolerance: float, seen: str) -> None:
    with pytest.raises(
        StartGateError,
        match=re.escape(
            f"step orca did not begin where policy and reference are equal: its first batch has {seen}, expected"
        ),
    ):
        start(loss, margin, tolerance)


def test_message_says_what_was_expected_and_the_tolerance() -> None:
    # 0.1 · 0.01 = 0.001
    with pytest.raises(StartGateError, match=re.escape("expected loss 0.6931 (ln 2) and margin 0, tolerance 0.001.")):
        start(margin=1.0)


def test_message_names_likely_causes() -> None:
    with pytest.raises(StartGateError, match=r"Likely causes: dropout that stayed on, a model changed between .*"):
        start(margin=1.0)


def test_long_rows_may_be_further_off() -> None:
    # β · 0.01 · √(8192/512) = 0.1 · 0.01 · 4 = 0.004
    start(margin=0.0039, tolerance=tolerance_nats(False, 8192))
    with pytest.raises(
        StartGateError, match=re.escape("margin +0.0041, expected loss 0.6931 (ln 2) and margin 0, tolerance 0.004.")
    ):
        start(margin=0.0041, tolerance=tolerance_nats(False, 8192))


def test_loss_that_is_no_function_of_margins_is_judged_by_its_margin_alone() -> None:
    start(loss=25.0, margin=0.0, expected=None)


def test_message_promises_no_loss_where_none_is_expected() -> None:
    with pytest.raises(
        StartGateError, match=re.escape("loss 25.0000 and mean reward margin +0.5000, expected margin 0")
    ):
        start(loss=25.0, margin=0.5, expected=None)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf], ids=str)
def test_loss_that_is_not_finite_is_refused_where_no_loss_is_expected(loss: float) -> None:
    with pytest.raises(StartGateError, match=f"its first batch has loss {loss} and"):
        start(loss=loss, expected=None)


def test_message_gives_the_value_of_another_loss_without_calling_it_ln_2() -> None:
    with pytest.raises(
        StartGateError, match=re.escape("has loss 0.6931 and mean reward margin +0.0000, expected loss 1.0000 and mar")
    ):
        start(loss=LN_2, expected=StartLoss(1.0, 0.1))


def test_steep_loss_may_be_further_off() -> None:
    # ipo at β 0.1: slope 1/0.1 = 10, allowed 2 · 10 · 0.01 = 0.2
    start(loss=25.19, expected=StartLoss(25.0, 10.0))
    with pytest.raises(StartGateError, match=re.escape("has loss 25.2100 and")):
        start(loss=25.21, expected=StartLoss(25.0, 10.0))


# --- the value of each loss where policy and reference are equal ---

# TRL's formulas, as functions of β, ε and the log-ratios of one row, chosen and rejected; tokens: 1 a side.


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def smoothed(beta: float, eps: float, chosen: float, rejected: float) -> float:
    margin = beta * (chosen - rejected)
    return -(1 - eps) * log_sigmoid(margin) - eps * log_sigmoid(-margin)


def robust(beta: float, eps: float, chosen: float, rejected: float) -> float:
    margin = beta * (chosen - rejected)
    return (-(1 - eps) * log_sigmoid(margin) + eps * log_sigmoid(-margin)) / (1 - 2 * eps)


def exo_pair(beta: float, eps: float, chosen: float, rejected: float) -> float:
    margin = beta * (chosen - rejected)
    won, lost = sigmoid(margin), sigmoid(-margin)
    return won * (math.log(won) - math.log1p(-eps)) + lost * (math.log(lost) - math.log(eps))


def discopop(beta: float, eps: float, chosen: float, rejected: float) -> float:
    margin = beta * (chosen - rejected)
    mix = sigmoid(margin / 0.05)  # TRL's default discopop_tau
    return -log_sigmoid(margin) * (1 - mix) + math.exp(-margin) * mix


Loss = Callable[[float, float, float, float], float]
LOSSES: dict[str, Loss] = {
    "sigmoid": lambda b, e, c, r: -log_sigmoid(b * (c - r)),
    "sigmoid_norm": lambda b, e, c, r: -log_sigmoid(b * (c - r)),
    "robust": robust,
    "aot": smoothed,
    "aot_unpaired": smoothed,
    "hinge": lambda b, e, c, r: max(0.0, 1 - b * (c - r)),
    "ipo": lambda b, e, c, r: (c - r - 1 / (2 * b)) ** 2,
    "sppo_hard": lambda b, e, c, r: (c - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
    "nca_pair": lambda b, e, c, r: -log_sigmoid(b * c) - 0.5 * log_sigmoid(-b * c) - 0.5 * log_sigmoid(-b * r),
    "bco_pair": lambda b, e, c, r: -log_sigmoid(b * c) - log_sigmoid(-b * r),
    "apo_zero": lambda b, e, c, r: 1 - sigmoid(b * c) + sigmoid(b * r),
    "apo_down": lambda b, e, c, r: sigmoid(b * c) + 1 - sigmoid(b * (c - r)),
    "discopop": discopop,
    "exo_pair": exo_pair,
}


def value_of(name: str, beta: float, smoothing: float) -> float:
    found = start_loss([name], [1.0], beta, smoothing)
    assert found is not None
    return found.value


@pytest.mark.parametrize(
    ("name", "smoothing", "value"),
    [
        pytest.param("sigmoid", 0.0, 0.693147, id="sigmoid"),  # −log σ(0) = ln 2
        pytest.param("sigmoid_norm", 0.0, 0.693147, id="sigmoid_norm"),
        pytest.param("robust", 0.0, 0.693147, id="robust"),
        pytest.param("robust", 0.3, 0.693147, id="robust-smoothed"),  # (0.7 − 0.3) ln 2 / (1 − 0.6)
        pytest.param("aot", 0.2, 0.693147, id="aot"),  # 0.8 ln 2 + 0.2 ln 2
        pytest.param("aot_unpaired", 0.2, 0.693147, id="aot_unpaired"),
        pytest.param("hinge", 0.0, 1.0, id="hinge"),  # max(0, 1 − 0)
        pytest.param("ipo", 0.0, 25.0, id="ipo"),  # (0 − 1/0.2)²
        pytest.param("sppo_hard", 0.0, 50.0, id="sppo_hard"),  # (0 − 0.5/0.1)² + (0 + 0.5/0.1)²
        pytest.param("bco_pair", 0.0, 1.386294, id="bco_pair"),  # 2 ln 2
        pytest.param("nca_pair", 0.0, 1.386294, id="nca_pair"),  # ln 2 + ½ ln 2 + ½ ln 2
        pytest.param("apo_zero", 0.0, 1.0, id="apo_zero"),  # 1 − ½ + ½
        pytest.param("apo_down", 0.0, 1.0, id="apo_down"),  # ½ + 1 − ½
        pytest.param("discopop", 0.0, 0.846574, id="discopop"),  # ½ ln 2 + ½ e⁰
        # −ln 2 − ½ (ln 0.001 + ln 0.999) = −0.693147 + ½ (6.907755 + 0.001001)
        pytest.param("exo_pair", 1e-3, 2.761231, id="exo_pair"),
        pytest.param("exo_pair", 0.5, 0.0, id="exo_pair-even"),  # p = (½, ½) on both sides
    ],
)
def test_start_loss_at_beta_0_1(name: str, smoothing: float, value: float) -> None:
    assert value_of(name, 0.1, smoothing) == pytest.approx(value, abs=1e-6)


@given(name=st.sampled_from(sorted(LOSSES)), beta=st.floats(0.001, 2), smoothing=st.floats(1e-6, 0.49))
def test_start_loss_is_the_loss_at_margin_0(name: str, beta: float, smoothing: float) -> None:
    assert value_of(name, beta, smoothing) == pytest.approx(LOSSES[name](beta, smoothing, 0.0, 0.0), rel=1e-9)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_row_within_tolerance_never_fails_by_its_own_loss(name: str) -> None:
    """Log-ratios that are noise of up to half the tolerance a side: what the trainer makes of them passes."""
    betas, smoothings, tolerances, weights = (0.005, 0.1, 0.3), (1e-6, 1e-3, 0.1, 0.3, 0.49), (0.01, 0.3, 1.0), (1, -2)
    for beta, smoothing, tolerance, weight in itertools.product(betas, smoothings, tolerances, weights):
        for chosen, rejected in itertools.product((-0.5 * tolerance, 0.0, 0.5 * tolerance), repeat=2):
            check_start(
                step="s",
                loss=weight * LOSSES[name](beta, smoothing, chosen, rejected),
                margin=beta * (chosen - rejected) * (1 - 1e-9),
                beta=beta,
                tolerance=tolerance,
                expected=start_loss([name], [weight], beta, smoothing),
            )


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"ipo", "sppo_hard", "hinge", "apo_zero", "apo_down"}))
def test_reference_that_is_nats_off_is_seen_in_the_loss_alone(name: str) -> None:
    """Rows off to both sides whose margins cancel: every loss that is convex there is above its start."""
    losses = [LOSSES[name](0.1, 0.01, 20.0, -20.0), LOSSES[name](0.1, 0.01, -20.0, 20.0)]
    with pytest.raises(StartGateError, match=r"mean reward margin \+0\.0000, expected loss"):
        start(loss=sum(losses) / 2, tolerance=HALF, expected=start_loss([name], [1.0], 0.1, 0.01))


def test_weights_mix_losses() -> None:
    mixed = start_loss(["sigmoid", "ipo"], [0.7, 0.3], 0.1, 0.0)
    assert mixed is not None
    assert mixed.value == pytest.approx(0.7 * LN_2 + 0.3 * 25)
    assert mixed.slope == pytest.approx(0.7 * 0.05 + 0.3 * 10)


def test_negative_weight_lowers_the_loss_and_not_what_it_may_be_off() -> None:
    mixed = start_loss(["hinge", "sigmoid"], [1.0, -1.0], 0.1, 0.0)
    assert mixed is not None
    assert (mixed.value, mixed.slope) == (pytest.approx(1 - LN_2), pytest.approx(0.1 + 0.05))


@pytest.mark.parametrize("names", [["sft"], ["sigmoid", "sft"], ["a_loss_of_tomorrow"]], ids="+".join)
def test_no_value_is_known_where_a_part_is_no_function_of_margins(names: list[str]) -> None:
    assert start_loss(names, [1.0] * len(names), 0.1, 0.0) is None


def test_every_loss_needs_its_weight() -> None:
    with pytest.raises(ValueError, match="shorter than argument"):
        start_loss(["sigmoid", "ipo"], [1.0], 0.1, 0.0)


def test_a_refreshed_reference_that_is_not_the_policy_says_when() -> None:
    """0.69315 + 0.0021 = 0.69525, as above."""
    with pytest.raises(StartGateError) as caught:
        check_start(
            step="orca", loss=LN_2 + 0.0021, margin=0.0, beta=0.1, tolerance=FULL, expected=SIGMOID, refreshed_at=1200
        )
    assert str(caught.value).startswith(
        "step orca, whose reference was refreshed at update 1,200, did not go on where policy and reference are equal: "
        "its next batch has loss 0.6952 and mean reward margin +0.0000, expected loss 0.6931 (ln 2) and margin 0, "
        "tolerance 0.001. Likely causes: dropout that stayed on"
    )
