"""The ln 2 gate: where policy and reference are one model, a step begins with loss ln 2 and margins 0."""

import math

from sdpo_plugin.errors import StartGateError

# Noise of one summed log-prob when the same row is scored in a batch of another shape, in nats. Measured on
# rows of up to 512 tokens: 1e-4 at most in float32, 0.29 at most in bfloat16; a wrong reference is off by nats.
FULL_PRECISION_NATS = 0.01
HALF_PRECISION_NATS = 1.0
MEASURED_TOKENS = 512


def tolerance_nats(half_precision: bool, max_tokens: int) -> float:
    """How far the mean log-ratio margin of a batch may be from 0, in nats.

    Args:
        half_precision: weights or autocast in bfloat16 or float16, or TF32 matrix products.
        max_tokens: longest row; rounding errors add up like a random walk, so the square root counts.
    """
    unit = HALF_PRECISION_NATS if half_precision else FULL_PRECISION_NATS
    return unit * max(1.0, math.sqrt(max_tokens / MEASURED_TOKENS))


def check_start(
    *, step: str, loss: float, margin: float, beta: float, tolerance: float, expected_loss: float | None
) -> None:
    """Stop a step whose first batch shows that its reference is not the model it starts from.

    At the start π_θ = π_ref, so γ_θ − γ_ref = 0 and Eq. 1 of arXiv 2403.19270 gives −log σ(0) = ln 2.

    Args:
        step: name of the step, for the message.
        loss: mean loss of the first batch over all ranks, before the first update.
        margin: mean of β(γ_θ − γ_ref) over the same batch.
        beta: β of the loss.
        tolerance: allowed mean of γ_θ − γ_ref, in nats (``tolerance_nats``).
        expected_loss: ln 2 for the plain sigmoid loss; None where the loss has another value at margin 0.

    Raises:
        StartGateError: the margin or the loss is off, or not a number.
    """
    allowed = beta * tolerance
    # |d/dx −log σ(x)| = 1/2 at 0, and the curvature adds x²/8 on top: allowed covers both while allowed < 4.
    loss_is_off = expected_loss is not None and not abs(loss - expected_loss) <= allowed
    if abs(margin) <= allowed and not loss_is_off:
        return
    wanted = "" if expected_loss is None else f"loss {expected_loss:.4f} (ln 2) and "
    raise StartGateError(
        f"step {step} did not begin where policy and reference are equal: its first batch has loss {loss:.4f} and "
        f"mean reward margin {margin:+.4f}, expected {wanted}margin 0, tolerance {allowed:.4g}. "
        "Likely causes: dropout that stayed on, a model changed between the reference pass and training "
        "(a callback, another plugin), or a forward pass that is not deterministic."
    )
