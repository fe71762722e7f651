"""Every defect of pairs, planted among clean ones and found where it was planted; and none in clean ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sdpo_plugin.check_words import check_lines, check_rows, refusals
from sdpo_plugin.pair_checks import KINDS, Found, LongerIsChosen, SourceChecks, SourcePairs, check_pairs
from sdpo_plugin.pair_facts import Columns, Marks, PairFacts, concatenate, pair_facts

BOS, EOS, SPACE, TURN = 1, 2, 3, (4, 5)  # TURN: text that stands behind every answer, in two tokens
MARKS = Marks(bos=BOS, wants_bos=True, eos=(EOS,), blank=(BOS, EOS, SPACE), ends=((*TURN, EOS), (EOS,)))
LIMIT = 12  # sequence_len
Pair = tuple[list[int], list[int], list[int]]


def pair(number: int) -> Pair:
    """A clean pair: the chosen answer is longer in even rows, the rejected one in odd rows."""
    answers = [[100 + number, 7, EOS], [200 + number, EOS]]
    return [BOS, 300 + number, 9], *(answers if number % 2 == 0 else answers[::-1])


def clean(rows: int = 10) -> list[Pair]:
    return [pair(number) for number in range(rows)]


def columns_of(pairs: Sequence[Pair]) -> Columns:
    return [
        (np.array([i for ids in column for i in ids], np.int64), np.array([*map(len, column)], np.int64))
        for column in zip(*pairs, strict=True)
    ]


def facts_of(pairs: Sequence[Pair]) -> PairFacts:
    return pair_facts(columns_of(pairs), MARKS)


def source(pairs: Sequence[Pair], name: str = "d1") -> SourcePairs:
    nothing = np.zeros(len(pairs), dtype=bool)
    return SourcePairs(name, len(pairs), 0, LIMIT, facts_of(pairs), nothing, Found(0, (), len(pairs)))


def check(pairs: Sequence[Pair]) -> SourceChecks:
    (found,) = check_pairs([source(pairs)])
    return found


def counted(checks: SourceChecks) -> dict[str, tuple[int, ...]]:
    """The kinds that were found, with their rows."""
    return {kind: found.rows for kind, found in checks.found.items() if found.num_rows}


def planted(**rows: Pair) -> list[Pair]:
    """Ten clean pairs with others in the place of some: `r3` is that of row 3."""
    pairs = clean()
    for name, row in rows.items():
        pairs[int(name[1:])] = row
    return pairs


def test_clean_pairs_have_nothing() -> None:
    checks = check(clean())
    assert counted(checks) == {}
    assert [found.num_rows for found in checks.found.values()] == [0] * len(KINDS)
    assert (check_lines([checks]), refusals([checks])) == ([], [])


P, A, B = [BOS, 50, 9], [51, EOS], [52, 53, EOS]


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        pytest.param(planted(r3=(P, A, A)), {"identical": (3,)}, id="identical"),
        pytest.param(planted(r4=(P, A, [EOS])), {"empty": (4,)}, id="empty-EOS"),
        pytest.param(planted(r4=(P, [SPACE, SPACE, EOS], A)), {"empty": (4,)}, id="empty-white-space"),
        pytest.param(planted(r4=(P, [*TURN, EOS], A)), {"empty": (4,)}, id="empty-turn"),
        pytest.param(planted(r4=(P, [], A)), {"empty": (4,), "no_eos": (4,)}, id="no-token"),
        pytest.param(planted(r0=(P, [51, *TURN, EOS], A)), {}, id="turn-behind-an-answer"),
        pytest.param(planted(r5=([BOS, BOS, 50], A, B)), {"doubled_bos": (5,)}, id="BOS-twice"),
        pytest.param(planted(r5=([BOS, 50, BOS], A, B)), {}, id="BOS-later"),
        pytest.param(planted(r5=([50, BOS], A, B)), {"no_bos": (5,)}, id="no-BOS"),
        pytest.param(planted(r5=([], A, B)), {"no_bos": (5,)}, id="no-prompt"),
        pytest.param(planted(r9=(P, [51, 52], B)), {"no_eos": (9,)}, id="no-EOS-chosen"),
        pytest.param(planted(r9=(P, A, [52, EOS, 51])), {"no_eos": (9,)}, id="no-EOS-rejected"),
        # 3 tokens of prompt and 10 of answer are one more than sequence_len
        pytest.param(planted(r1=(P, [*range(60, 69), EOS], B)), {"truncated": (1,)}, id="truncated"),
        pytest.param(planted(r1=(P, [*range(60, 68), EOS], B)), {}, id="just-fits"),
        pytest.param(planted(r7=(P, A, B), r8=(P, A, B), r9=(P, A, B)), {"duplicates": (8, 9)}, id="duplicates"),
        pytest.param(planted(r2=(P, A, B), r8=(P, B, A)), {"contradictory": (2, 8)}, id="contradictory"),
        pytest.param(planted(r2=(P, A, B), r8=([BOS, 50], B, A)), {}, id="another-prompt"),
    ],
)
def test_defect_is_found_where_it_was_planted(pairs: list[Pair], found: dict[str, tuple[int, ...]]) -> None:
    assert counted(check(pairs)) == found


def test_rows_that_a_hook_has_made_are_looked_at_by_themselves() -> None:
    """It may judge the pairs of an earlier step again; within its own rows nothing is overlooked."""
    made = [(p, r, c) for p, c, r in clean()]
    made[9] = made[8]
    sources = [source(clean()), replace(source(made, "d2"), is_made=True), source(clean(), "d3")]
    found = [counted(checks) for checks in check_pairs(sources)]
    assert found == [{}, {"duplicates": (9,)}, {"duplicates": tuple(range(3))}]


def test_rows_are_too_long_for_their_own_step() -> None:
    """A pair of 3 tokens of prompt and 9 of answer fits into 12 and not into 11, whatever the other steps take."""
    pairs = planted(r1=(P, [*range(60, 68), EOS], B))
    shorter = replace(source(pairs), sequence_len=LIMIT - 1)
    found = [counted(checks) for checks in check_pairs([shorter, source(planted(r1=(P, A[:1], B)), "d2")])]
    assert found[0] == {"truncated": (1,)}
    assert "truncated" not in found[1]


def test_defects_are_found_in_batches_as_in_one() -> None:
    pairs = planted(r3=(P, A, A), r4=(P, A, [EOS]), r5=([BOS, BOS, 50], A, B), r9=(P, [51], B))
    parts = concatenate([facts_of(pairs[:4]), facts_of(pairs[4:])])
    whole = facts_of(pairs)
    assert all((getattr(parts, name) == getattr(whole, name)).all() for name in vars(whole))


def test_bos_is_not_missed_where_none_is_wanted() -> None:
    marks = replace(MARKS, wants_bos=False)
    assert not pair_facts(columns_of(planted(r5=([50], A, B))), marks).no_bos.any()
    none = pair_facts(columns_of(clean()), replace(marks, bos=None))
    assert not (none.no_bos | none.doubled_bos).any()


def test_pairs_of_other_sources_count_as_earlier_ones_and_as_contradictions() -> None:
    """Row 2 of the second source is row 7 of the first; row 5 is its row 8 the other way round."""
    first, second = clean(), [(p, c, r) for p, c, r in [pair(20 + number) for number in range(10)]]
    second[2] = first[7]
    second[5] = (first[8][0], first[8][2], first[8][1])
    found = [counted(checks) for checks in check_pairs([source(first), source(second, "d2")])]
    assert found == [{"contradictory": (8,)}, {"duplicates": (2,), "contradictory": (5,)}]


def test_first_three_rows_are_named_and_all_are_counted() -> None:
    pairs = planted(**{f"r{row}": (pair(row)[0], [60 + row, EOS], [60 + row, EOS]) for row in (1, 3, 4, 6, 8)})
    assert check(pairs).found["identical"] == Found(5, (1, 3, 4))
    (line,) = check_lines([check(pairs)], lambda name, row: f"{row} of {name}")
    assert line == (
        "step d1: 5 of 10 pairs (50.0%) have the same tokens as chosen and as rejected answer: "
        "rows 1 of d1, 3 of d1, 4 of d1, …"
    )


# --- what is refused ---


@pytest.mark.parametrize(("rows", "refused"), [(5, []), (6, ["identical"])])
def test_identical_pairs_are_refused_above_a_half(rows: int, refused: list[str]) -> None:
    pairs = clean()
    for row in range(rows):
        prompt, chosen, _ = pairs[row]
        pairs[row] = (prompt, chosen, chosen)
    checks = check(pairs)
    assert checks.refused() == refused
    said = [
        "step d1: 6 of 10 pairs (60.0%) have the same tokens as chosen and as rejected answer: rows 0, 1, 2, …. More "
        "than 50% are refused. Such a pair has no gradient. Check field_chosen and field_rejected of the entry, or "
        "remove these rows. To train on them all the same, set sdpo.check_data: warn."
    ]
    assert refusals([checks]) == (said if refused else [])


def test_one_answer_that_lost_its_content_is_refused() -> None:
    lost = np.arange(10) == 6
    (checks,) = check_pairs([replace(source(clean()), lost=lost)])
    assert (counted(checks), checks.refused()) == ({"lost": (6,)}, ["lost"])
    (line,) = refusals([checks])
    assert line.startswith("step d1: 1 of 10 pairs (10.0%) have an answer that lost its content on the way through ")
    assert "the chat template: row 6. A single one is refused. type: chat_template.* looks for" in line


def test_rows_of_the_files_have_a_share_of_their_own() -> None:
    """Of 10 pairs 20 rows were read: 11 of them are more than a half, and 10 are not."""
    few, most = (replace(source(clean()), other_prompts=Found(count, (0, 4, 5), 20)) for count in (10, 11))
    assert [checks.refused() for checks in check_pairs([few, most])] == [[], ["other_prompts"]]
    (line,) = check_lines(check_pairs([most]), lambda name, row: "not asked")
    assert "step d1: 11 of 20 pairs (55.0%) have a rejected answer to another prompt" in line
    assert line.endswith("rows 0, 4, 5, … as they stand in the files")


@pytest.mark.parametrize("kind", ["no_bos", "no_eos", "truncated", "duplicates"])
def test_what_data_may_have_is_never_refused(kind: str) -> None:
    checks = replace(check(clean()), found=dict.fromkeys(KINDS, Found(0)) | {kind: Found(10, (0, 1, 2))})
    assert checks.refused() == []
    assert len(check_lines([checks])) == 1


# --- length ---


def lengths(longer: int, shorter: int, even: int = 0) -> SourceChecks:
    """Checks of so many pairs whose chosen answer is longer, shorter, and as long."""
    sizes = [(3, 2)] * longer + [(2, 3)] * shorter + [(2, 2)] * even
    return check([([BOS, 300 + n], [10, 11, EOS][-c:], [20, 21, EOS][-r:]) for n, (c, r) in enumerate(sizes)])


def test_length_is_measured_over_pairs_of_different_length() -> None:
    # Wilson of 8 of 10: 0.4902 to 0.9433, as in test_estimates.py
    found = lengths(8, 2, even=5).longer_is_chosen
    assert found == LongerIsChosen(10, 0.8, pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))
    assert lengths(0, 0, even=5).longer_is_chosen is None


@pytest.mark.parametrize(
    ("longer", "shorter", "which"),
    [
        pytest.param(24, 1, "longer one is chosen in 96.0% (95 % 80.5% to 99.3%)", id="longer"),
        pytest.param(1, 24, "shorter one is chosen in 96.0% (95 % 80.5% to 99.3%)", id="shorter"),
        pytest.param(9, 1, "", id="few"),  # 0.9, and its interval begins at 0.596
        pytest.param(70, 30, "", id="as-in-real-data"),
    ],
)
def test_length_that_predicts_the_label_is_said(longer: int, shorter: int, which: str) -> None:
    # Wilson of 24 of 25: centre (0.96 + 3.8415/50)/(1 + 3.8415/25) = 0.8987, half-width 0.0943: 0.8046 to 0.9929
    lines = check_lines([lengths(longer, shorter)])
    head = "step d1: length alone predicts the label: of 25 pairs with answers of different length the "
    assert lines == ([head + which] if which else [])


# --- in words ---


def test_table_has_a_line_a_kind_and_a_dash_for_what_was_not_looked_at() -> None:
    """Of messages, tokens and texts are not known."""
    messages = SourcePairs("d2", 4, None, LIMIT, None, None)
    rows = {row[0]: row[1:] for row in check_rows(check_pairs([source(planted(r3=(P, A, A))), messages]))}
    assert rows["pairs"] == ("d1", "d2")
    assert rows["all pairs"] == ("10", "4")
    assert rows["dropped (too long, or repeated)"] == ("0", "–")
    assert rows["chosen the same as rejected"] == ("1", "–")
    assert rows["longer answer is chosen, share"] == ("0.556", "–")  # 5 of 9: the planted pair has no longer one
    assert [kind.heading for kind in KINDS.values()] == list(rows)[3:-3]


def test_share_of_very_few_is_no_zero() -> None:
    checks = SourceChecks("d1", 100_000, 0, dict.fromkeys(KINDS, Found(0)) | {"empty": Found(1, (7,))})
    assert check_lines([checks]) == ["step d1: 1 of 100,000 pairs (under 0.1%) have an answer without content: row 7"]
