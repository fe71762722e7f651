"""What the numbers of a run say, in words: each with its number, its interval and the threshold it has passed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_plugin import estimates, measures
from sdpo_plugin.estimates import Interval
from sdpo_plugin.plan import M_0, Plan, StepPlan, model_name
from sdpo_plugin.report.cells import Cells
from sdpo_plugin.tables import LogProbTable

FEWEST_ROWS = 20  # below it no interval is worth its name
# Reference-free accuracy from which a reference has probably seen the data: a base model is near one half, and the
# paper's model goes from γ_ref -38.60 to +84.35 by training on it.
SEEN_BEFORE = 0.9
FALL = 0.02  # of accuracy: two pairs in a hundred
# Mean β·(γ_t − γ_{t−1}) on the step's own data below which its loss has moved by less than 0.01 from ln 2 (slope ½).
HARDLY = 0.02
LESS_LIKELY = 0.1  # nats a token: each token of the chosen answers has lost a tenth of its probability
LONGER = 0.05  # above the share of pairs whose chosen answer is the longer one


@dataclass(frozen=True)
class Verdict:
    """One thing to remark.

    Attributes:
        kind: a name for it.
        step: t, or 0 where it is about the whole run.
        text: in words.
        value: the number; low, high: its 95 % confidence interval, where it has one.
        threshold: that the number has passed.
    """

    kind: str
    step: int
    text: str
    value: float
    low: float | None
    high: float | None
    threshold: float


def verdicts(
    plan: Plan, references: Mapping[int, LogProbTable], train: Cells, heldout: Cells, betas: Sequence[float | None]
) -> list[Verdict]:
    """All that is to be remarked of a run; empty: nothing is.

    Args:
        plan: of the run.
        references: reference table of each step, by t.
        train: D_1 … D_T under the models.
        heldout: the held-out sets under the models.
        betas: β of each step; None: it has not been trained.
    """
    found: list[Verdict] = []
    for step in plan.steps:
        found += _seen_before(step, references.get(step.index))
        found += _no_rise(step, train)
        found += _hardly(step, train, betas[step.index - 1])
        found += _fallen(step, plan, train, "the rows of step ")
        found += _fallen(step, plan, heldout, "held-out ")
    for cells, what in ((train, "D_{} of step "), (heldout, "held-out set {}, ")):
        found += _less_likely(cells, what)
        found += _longer(cells, what)
    return found


def _seen_before(step: StepPlan, table: LogProbTable | None) -> Iterator[Verdict]:
    """M_{t-1} may be right about D_t because it has learnt; M_0 and a model from elsewhere have not learnt here."""
    if table is None or len(table) < FEWEST_ROWS or (step.reference.startswith("M_") and step.reference != M_0):
        return
    right = estimates.wilson(int((measures.gamma(table) > 0).sum()), len(table))
    if right.value >= SEEN_BEFORE:
        mean = measures.gamma_stats(table).mean
        text = (
            f"the reference {step.reference} prefers the chosen answer in {right.value:.1%} of the rows of step "
            f"{step.name} (mean γ_ref {mean:+.2f}): it has probably been trained on them. In the paper mean γ_ref was "
            "-38.60 under the base model and +84.35 under the model trained on that data (arXiv 2403.19270, Fig. 2)"
        )
        yield _verdict("seen before", step.index, text, right, SEEN_BEFORE)


def _no_rise(step: StepPlan, train: Cells) -> Iterator[Verdict]:
    """γ_ref of D_t under M_{t-1} against the same rows under M_0: what makes the reference a stricter lower bound."""
    column = step.index - 1
    base, reference = train.tables.get((0, column)), train.tables.get((column, column))
    if step.index == 1 or step.reference != model_name(column) or base is None or reference is None:
        return
    rise = estimates.mean(measures.gamma(reference) - measures.gamma(base)) if len(base) >= FEWEST_ROWS else None
    if rise is not None and rise.low <= 0:
        beyond = "fell" if rise.high < 0 else "did not rise beyond noise"
        text = (
            f"γ_ref of step {step.name} {beyond}: under {step.reference} its mean differs from that under M_0 by "
            f"{_signed(rise, ' nats')}. The steps before have not made the reference stricter on this data"
        )
        yield _verdict("gamma_ref did not rise", step.index, text, rise, 0.0)


def _hardly(step: StepPlan, train: Cells, beta: float | None) -> Iterator[Verdict]:
    around = train.around(step.index, step.index - 1)
    if around is None or beta is None or len(around[0]) < FEWEST_ROWS:
        return
    moved = estimates.mean(beta * (measures.gamma(around[1]) - measures.gamma(around[0])))
    if moved is not None and abs(moved.value) < HARDLY:
        text = (
            f"step {step.name} changed hardly anything: the margins of its own rows, β = {beta:g} times the change of "
            f"γ, are {_signed(moved)} after it, and less than {HARDLY:g} moves its loss by less than 0.01. It needs "
            "more epochs, a higher learning_rate, or other data"
        )
        yield _verdict("step changed hardly anything", step.index, text, moved, HARDLY)


def _fallen(step: StepPlan, plan: Plan, cells: Cells, what: str) -> Iterator[Verdict]:
    """Of held-out sets, and of the data of earlier steps."""
    for column, name in enumerate(cells.sets):
        around = cells.around(step.index, column)
        is_own = cells.sets != plan.heldout and column >= step.index - 1
        if around is None or len(around[0]) < FEWEST_ROWS or is_own:
            continue
        change = measures.change(*around)
        if change is not None and change.accuracy.value < -FALL and change.accuracy.high < 0:
            text = (
                f"reference-free accuracy on {what}{name} fell in step {step.name}: {_signed(change.accuracy, '', 3)}; "
                f"{change.lost:.1%} of its pairs are wrong that were right before, {change.won:.1%} the other way round"
            )
            yield _verdict("accuracy fell", step.index, text, change.accuracy, -FALL)


def _less_likely(cells: Cells, what: str) -> Iterator[Verdict]:
    """Likelihood displacement (arXiv 2410.08847): margins grow while the chosen answers lose, too."""
    for column, name in enumerate(cells.sets):
        last, base = _last(cells, column), cells.tables.get((0, column))
        if last is None or base is None or len(base) < FEWEST_ROWS:
            continue
        lost = estimates.mean(measures.chosen_per_token(cells.tables[last, column]) - measures.chosen_per_token(base))
        if lost is not None and lost.value < -LESS_LIKELY and lost.high < 0:
            text = (
                f"chosen answers become less likely: on {what.format(column + 1)}{name} their log-prob a token under "
                f"M_{last} differs from that under M_0 by {_signed(lost, ' nats', 3)}. dpo_loss_type [sigmoid, sft] "
                "or a higher rl_beta holds them"
            )
            yield _verdict("chosen log-probs fall", last, text, lost, -LESS_LIKELY)


def _longer(cells: Cells, what: str) -> Iterator[Verdict]:
    """What is rewarded for its length alone: more often than the longer answer is the chosen one."""
    for column, name in enumerate(cells.sets):
        last, base = _last(cells, column), cells.tables.get((0, column))
        if last is None or base is None or measures.num_unequal(base) < FEWEST_ROWS:
            continue
        rewarded = measures.longer_rewarded(cells.tables[last, column], base)
        assert rewarded is not None, "answers of some pairs differ in length"
        wanted = measures.longer_chosen(base)
        if rewarded.low > wanted + LONGER:
            text = (
                f"longer answers are preferred beyond what the data say: on {what.format(column + 1)}{name} M_{last} "
                f"has raised the longer answer over the shorter one in {rewarded.value:.1%} of the pairs (95 % "
                f"{rewarded.low:.1%} to {rewarded.high:.1%}), and it is the chosen one in {wanted:.1%}. Its answers "
                "probably get longer"
            )
            yield _verdict("answers get longer", last, text, rewarded, wanted + LONGER)


def _last(cells: Cells, column: int) -> int | None:
    """The last model after M_0 that was computed on a set."""
    return max((row for row, at in cells.tables if at == column and row), default=None)


def _signed(interval: Interval, unit: str = "", digits: int = 2) -> str:
    return f"{interval.value:+.{digits}f}{unit} (95 % {interval.low:+.{digits}f} to {interval.high:+.{digits}f})"


def _verdict(kind: str, step: int, text: str, interval: Interval, threshold: float) -> Verdict:
    return Verdict(kind, step, text, interval.value, interval.low, interval.high, threshold)


def as_rows(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """For `report.json`."""
    return [vars(verdict).copy() for verdict in found]
