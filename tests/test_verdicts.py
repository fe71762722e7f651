"""What a report remarks: each verdict where its threshold is passed beyond noise, and not on this side of it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from sdpo_plugin import measures
from sdpo_plugin.plan import Plan
from sdpo_plugin.report.cells import Cells
from sdpo_plugin.report.verdicts import Verdict, verdicts
from sdpo_plugin.tables import LogProbTable
from tests.fakes import EXTERNAL, make_plan

ROWS = 100
# As many above the mean as below it, one nat away: its standard error is √(100/99)/10 = 0.1005, 1.96 of it 0.197.
NOISE = np.tile([1.0, -1.0], ROWS // 2)


def table(
    gamma: float | Sequence[float] | np.ndarray,
    chosen: float = -10.0,
    model: str = "M_0",
    tokens: tuple[int, int] = (10, 10),
    rows: int = ROWS,
) -> LogProbTable:
    """A table with this γ: of each row, or of all."""
    wanted = np.broadcast_to(np.asarray(gamma, dtype=np.float64), (rows,))
    right = np.full(rows, chosen)
    return LogProbTable(
        right.astype(np.float32),
        (right - wanted).astype(np.float32),
        np.full(rows, tokens[0]),
        np.full(rows, tokens[1]),
        model=model,
        rows_digest="r" * 64,
    )


def cells(sets: Sequence[str], columns: Sequence[Sequence[LogProbTable | None]]) -> Cells:
    """Models by sets; each column is given from M_0 on."""
    found = {
        (row, column): one for column, of_set in enumerate(columns) for row, one in enumerate(of_set) if one is not None
    }
    sizes = [ROWS] * len(sets)
    return Cells(sets, ["M_0", "M_1", "M_2"], sizes, sizes, found)


NO_SETS = cells((), ())


def remark(
    train: Sequence[Sequence[LogProbTable | None]] = ((None,) * 3,) * 2,
    heldout: Sequence[LogProbTable | None] | None = None,
    plan: Plan | None = None,
    references: dict[int, LogProbTable] | None = None,
    beta: float | None = 0.1,
) -> list[Verdict]:
    plan = plan or make_plan(heldout={} if heldout is None else {"val": ()})
    of_heldout = NO_SETS if heldout is None else cells(plan.heldout, [heldout])
    return verdicts(plan, references or {}, cells(("step-1", "step-2"), train), of_heldout, [beta, beta])


def kinds(found: Sequence[Verdict]) -> list[tuple[str, int]]:
    return [(verdict.kind, verdict.step) for verdict in found]


def test_nothing_known_is_nothing_to_remark() -> None:
    assert remark() == []


# --- the reference has seen the data ---


@pytest.mark.parametrize(
    ("wrong", "reference", "told"),
    [
        (10, EXTERNAL, True),
        (11, EXTERNAL, False),
        (0, "M_0", True),
        (0, "M_1", False),  # it may well rank D_t rightly: that is what stepwise DPO is for
    ],
    ids=["nine-of-ten", "fewer", "base", "own"],
)
def test_reference_that_has_probably_seen_the_data(wrong: int, reference: str, told: bool) -> None:
    seen = table([-1.0] * wrong + [1.0] * (ROWS - wrong))
    step = dataclasses.replace(make_plan().steps[0], reference=reference)
    found = remark(plan=dataclasses.replace(make_plan(heldout={}), steps=(step,)), references={1: seen})
    assert kinds(found) == ([("seen before", 1)] if told else [])


def test_words_about_a_reference_give_the_paper_s_numbers() -> None:
    plan = make_plan(reference=EXTERNAL, heldout={})
    (found,) = remark(plan=plan, references={1: table([-1.0] * 5 + [1.0] * 95)})
    assert found.text == (
        "the reference org/reference prefers the chosen answer in 95.0% of the rows of step step-1 (mean γ_ref "
        "+0.90): it has probably been trained on them. In the paper mean γ_ref was -38.60 under the base model and "
        "+84.35 under the model trained on that data (arXiv 2403.19270, Fig. 2)"
    )
    assert (found.value, found.threshold) == (0.95, 0.9)
    assert (found.low, found.high) == (pytest.approx(0.8882, abs=5e-5), pytest.approx(0.9785, abs=5e-5))  # Wilson


def test_few_rows_say_nothing() -> None:
    plan = make_plan(reference=EXTERNAL, heldout={})
    assert kinds(remark(plan=plan, references={1: table(1.0, rows=20)})) == [("seen before", 1)]
    assert remark(plan=plan, references={1: table(1.0, rows=19)}) == []


# --- γ_ref ---


@pytest.mark.parametrize(
    ("rise", "told", "words"),
    [
        (
            0.19,
            True,
            "did not rise beyond noise: under M_1 its mean differs from that under M_0 by +0.19 nats (95 % -0",
        ),
        (0.20, False, ""),  # 0.20 − 0.197 is above 0
        (-0.3, True, "fell: under M_1 its mean differs from that under M_0 by -0.30 nats (95 % -0.50 to -0.10)"),
    ],
    ids=["noise", "rose", "fell"],
)
def test_gamma_ref_that_did_not_rise(rise: float, told: bool, words: str) -> None:
    found = remark([(None,) * 3, (table(5.0), table(5.0 + rise + NOISE), None)])
    assert kinds(found) == ([("gamma_ref did not rise", 2)] if told else [])
    assert not told or f"γ_ref of step step-2 {words}" in found[0].text


def test_gamma_ref_of_a_fixed_reference_is_not_expected_to_rise() -> None:
    assert remark([(None,) * 3, (table(5.0), table(4.0), None)], plan=make_plan(reference="base", heldout={})) == []


# --- a step that did nothing ---


@pytest.mark.parametrize(
    ("moved", "beta", "told"),
    [(0.19, 0.1, True), (0.2, 0.1, False), (-0.19, 0.1, True), (1.9, 0.01, True), (0.0, None, False)],
    ids=["hardly", "enough", "hardly-down", "low-beta", "not-trained"],
)
def test_step_that_changed_hardly_anything(moved: float, beta: float | None, told: bool) -> None:
    """β · 0.2 = 0.02 is the least margin that counts."""
    found = remark([(table(0.0), table(moved + 0.0001 * math.copysign(1, moved)), None), (None,) * 3], beta=beta)
    assert kinds(found) == ([("step changed hardly anything", 1)] if told else [])


# --- forgetting ---


def with_right(number: int) -> np.ndarray:
    """γ of which this many are above 0, the first ones."""
    return np.where(np.arange(ROWS) < number, 1.0, -1.0)


@pytest.mark.parametrize(("after", "told"), [(74, True), (76, False), (78, False), (90, False)])
def test_accuracy_that_fell_on_a_held_out_set(after: int, told: bool) -> None:
    """80 of 100 before. 6 pairs lost: −0.06 ± 1.96 · √(0.06 · 0.94/99) = 0.0468; 4 lost: −0.04 ± 0.0386; 2: not beyond
    the threshold; 4 lost is told, too."""
    found = remark(heldout=(table(with_right(80)), table(with_right(after)), None))
    expected = told or after == 76
    assert kinds(found) == ([("accuracy fell", 1)] if expected else [])


def test_words_about_a_fall() -> None:
    (found,) = remark(heldout=(table(with_right(80)), table(with_right(74)), None))
    assert found.text == (
        "reference-free accuracy on held-out val fell in step step-1: -0.060 (95 % -0.107 to -0.013); 6.0% of its "
        "pairs are wrong that were right before, 0.0% the other way round"
    )
    assert (found.value, found.threshold) == (pytest.approx(-0.06), -0.02)


def test_fall_within_noise_is_not_told() -> None:
    """As many won as lost but for three: 20 lost, 17 won, −0.03 ± 0.12."""
    after = with_right(80)
    after[:20], after[80:97] = -1.0, 1.0
    assert remark(heldout=(table(with_right(80)), table(after), None)) == []


def test_fall_on_the_data_of_an_earlier_step_is_forgetting_and_on_data_to_come_is_not() -> None:
    falls = (table(with_right(80)), table(with_right(80) * 5), table(with_right(60)))
    assert ("accuracy fell", 2) in kinds(remark([falls, (None,) * 3]))
    assert "fell in step step-2" in remark([falls, (None,) * 3])[-1].text
    to_come = (table(with_right(80)), table(with_right(60)), None)
    assert ("accuracy fell", 1) not in kinds(remark([(None,) * 3, to_come]))


# --- likelihood displacement, length ---


@pytest.mark.parametrize(("lost", "told"), [(1.01, True), (0.99, False), (-1.0, False)], ids=["tenth", "less", "gain"])
def test_chosen_answers_that_become_less_likely(lost: float, told: bool) -> None:
    """Ten tokens: a nat of the sum is a tenth of a nat a token."""
    found = remark(heldout=(table(0.0), table(5.0, chosen=-10.0 - lost), None))
    assert kinds(found) == ([("chosen log-probs fall", 1)] if told else [])


def test_last_model_is_the_one_that_is_judged() -> None:
    fallen, back = table(5.0, chosen=-20.0), table(6.0)
    assert remark(heldout=(table(0.0), fallen, back)) == []
    assert kinds(remark(heldout=(table(0.0), back, fallen))) == [("chosen log-probs fall", 2)]


@pytest.mark.parametrize(
    ("tokens", "gained", "told"),
    [((10, 20), -1.0, True), ((20, 10), 1.0, False), ((10, 10), -1.0, False)],
    ids=["rejected-is-longer-and-gains", "chosen-is-longer-and-gains", "equal-lengths"],
)
def test_length_that_is_rewarded_beyond_the_data(tokens: tuple[int, int], gained: float, told: bool) -> None:
    found = remark(heldout=(table(1.0, tokens=tokens), table(1.0 + gained, tokens=tokens), None))
    assert [verdict for verdict in kinds(found) if verdict[0] == "answers get longer"] == (
        [("answers get longer", 1)] if told else []
    )


def test_length_of_few_pairs_tells_nothing() -> None:
    """Of all pairs only those whose answers differ in length count."""
    lengths = np.where(np.arange(ROWS) < 6, 20, 10)
    base, last = (dataclasses.replace(table(gamma, tokens=(10, 10)), rejected_tokens=lengths) for gamma in (1.0, 0.0))
    assert measures.num_unequal(base) == 6
    assert "answers get longer" not in [kind for kind, *_ in kinds(remark(heldout=(base, last, None)))]


# --- the numbers under them ---


def test_change_of_the_same_pairs() -> None:
    before, after = table([1.0, 2.0, -1.0, -2.0], rows=4), table([2.0, -2.0, -2.0, 4.0], rows=4)
    found = measures.change(before, after)
    assert found is not None
    # changes 1, −4, −1, 6: mean ½, in order −4, −1, 1, 6: quartiles −1.75, 0, 2.25
    assert (found.gamma.value, found.q25, found.median, found.q75) == (0.5, -1.75, 0.0, 2.25)
    assert (found.lost, found.won, found.accuracy.value) == (0.25, 0.25, 0.0)


def test_change_of_one_pair_has_no_interval() -> None:
    assert measures.change(table([1.0], rows=1), table([2.0], rows=1)) is None


def test_kl_is_half_the_mean_square_of_the_log_ratios() -> None:
    # chosen +1, rejected 1 − (γ changes by 3) = −2: ½ · (1 + 4)/2
    base, model = table(0.0, chosen=-10.0), table(3.0, chosen=-9.0)
    assert measures.kl_to_base(model, base) == pytest.approx(1.25)
    assert measures.kl_to_base(base, base) == 0.0


def test_tables_of_other_rows_are_not_compared() -> None:
    other = dataclasses.replace(table(0.0), rows_digest="s" * 64)
    with pytest.raises(AssertionError, match="tables of other rows cannot be compared"):
        measures.change(table(0.0), other)
