"""The ln 2 gate: where policy and reference are one model, a step begins with loss ln 2 and margins 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_plugin.errors import StartGateError

LN2 = math.log(2)

# Noise of one summed log-prob when the same row is computed in a batch of another shape, in nats. Measured on
# rows of up to 512 tokens: 1e-4 at most in float32, 0.29 at most in bfloat16; a wrong reference is off by nats.
FULL_PRECISION_NATS = 0.01
HALF_PRECISION_NATS = 1.0
MEASURED_TOKENS = 512


def tolerance_nats(half_precision: bool, max_tokens: int) -> float:
    """The distance from 0 that the mean log-ratio margin of a batch may have, in nats.

    Args:
        half_precision: weights or autocast in bfloat16 or float16, or TF32 matrix products.
        max_tokens: longest row; rounding errors add up like a random walk, so the square root counts.
    """
    unit = HALF_PRECISION_NATS if half_precision else FULL_PRECISION_NATS
    return unit * max(1.0, math.sqrt(max_tokens / MEASURED_TOKENS))


@dataclass(frozen=True)
class StartLoss:
    """A loss where every margin is 0.

    Attributes:
        value: its value there.
        slope: how much it can change per nat that a log-ratio is off.
    """

    value: float
    slope: float


def start_loss(
    loss_types: Sequence[str], loss_weights: Sequence[float], beta: float, smoothing: float
) -> StartLoss | None:
    """The weighted loss where policy and reference are equal; None where it depends on more than the margins.

    Args:
        loss_types: TRL's names, e.g. ["sigmoid"].
        loss_weights: weight of each.
        beta: β.
        smoothing: assumed share of flipped labels ε; at margin 0 it cancels but for exo_pair.
    """
    parts = [_start_of(name, beta, smoothing) for name in loss_types]
    known = [(part, weight) for part, weight in zip(parts, loss_weights, strict=True) if part is not None]
    if len(known) < len(parts):
        return None
    return StartLoss(
        sum(part.value * weight for part, weight in known), sum(part.slope * abs(weight) for part, weight in known)
    )


def _start_of(name: str, beta: float, smoothing: float) -> StartLoss | None:
    match name:
        case "sigmoid" | "aot" | "aot_unpaired" | "sigmoid_norm":
            return StartLoss(LN2, beta / 2)  # −log σ(0); arXiv 2305.18290 Eq. 7 and its kin
        case "robust":
            return StartLoss(LN2, beta / (2 - 4 * smoothing))  # ln 2 · (1 − 2ε)/(1 − 2ε), arXiv 2403.00409
        case "hinge":
            return StartLoss(1.0, beta)  # max(0, 1 − 0), arXiv 2305.10425
        case "ipo":
            return StartLoss(1 / (4 * beta**2), 1 / beta)  # (0 − 1/(2β))², arXiv 2310.12036 Eq. 17
        case "sppo_hard":
            return StartLoss(1 / (2 * beta**2), 2 / beta)  # (0 − 1/(2β))² + (0 + 1/(2β))², arXiv 2405.00675
        case "nca_pair" | "bco_pair":
            return StartLoss(2 * LN2, beta)  # two to three logistic terms of total weight 2 (arXiv 2402.05369)
        case "apo_zero" | "apo_down":
            return StartLoss(1.0, beta / 2)  # σ(0) + (1 − σ(0)), arXiv 2408.06266
        case "discopop":
            return StartLoss(0.5 * LN2 + 0.5, 2 * beta)  # half logistic, half exponential, arXiv 2406.08414 Eq. 5
        case "exo_pair":  # Σ ½ (ln ½ − ln p) over p = 1 − ε and ε, arXiv 2402.00856 Eq. 16
            odds = math.log((1 - smoothing) / smoothing)
            return StartLoss(-LN2 - 0.5 * math.log(smoothing * (1 - smoothing)), beta * (1 + odds) / 2)
        case _:
            return None  # "sft" is a likelihood and no function of margins; a name TRL may add


def check_start(
    *,
    step: str,
    loss: float,
    margin: float,
    beta: float,
    tolerance: float,
    expected: StartLoss | None,
    refreshed_at: int | None = None,
) -> None:
    """Stop a step whose first batch, at its start or after a refresh, shows that its reference is not the policy.

    At the start π_θ = π_ref, so γ_θ − γ_ref = 0 and Eq. 1 of arXiv 2403.19270 gives −log σ(0) = ln 2.

    Args:
        step: name of the step, for the message.
        loss: mean loss of the first batch over all ranks, before the first update.
        margin: mean of β(γ_θ − γ_ref) over the same batch.
        beta: β of the loss.
        tolerance: allowed mean of γ_θ − γ_ref, in nats (``tolerance_nats``).
        expected: the loss at margin 0 (``start_loss``), ln 2 for the sigmoid loss; None: only the margin is checked.
        refreshed_at: updates made before its reference was refreshed; None: it is the one that the step began with.

    Raises:
        StartGateError: the margin or the loss is off, or not a number.
    """
    allowed = beta * tolerance
    # The slope holds at 0 itself; twice of it covers the curvature of every loss above while allowed is small.
    loss_is_off = expected is not None and not abs(loss - expected.value) <= 2 * expected.slope * tolerance
    if abs(margin) <= allowed and not loss_is_off and math.isfinite(loss):
        return
    is_ln2 = " (ln 2)" if expected is not None and math.isclose(expected.value, LN2) else ""
    wanted = "" if expected is None else f"loss {expected.value:.4f}{is_ln2} and "
    where, batch = f"step {step} did not begin", "first"
    if refreshed_at is not None:
        where, batch = f"step {step}, whose reference was refreshed at update {refreshed_at:,}, did not go on", "next"
    raise StartGateError(
        f"{where} where policy and reference are equal: its {batch} batch has loss {loss:.4f} and "
        f"mean reward margin {margin:+.4f}, expected {wanted}margin 0, tolerance {allowed:.4g}. "
        "Likely causes: dropout that stayed on, a model changed between the reference pass and training "
        "(a callback, another plugin), or a forward pass that is not deterministic."
    )
