"""The plan: its file, its fingerprint, its table."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.plan import Overlap, Plan, SourceRank, StepPlan, host_total_steps, model_name, text_table
from tests.fakes import make_plan

TEXT = st.text(max_size=10)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(
    lambda name: name.lower() not in ("sdpo", "runs", "merged") and not name.lower().startswith("checkpoint-")
)
COUNT = st.integers(0, 10**9)
SHARE = st.floats(0, 1)
SETTING = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT


RANK = SourceRank("a", num_rows=10, accuracy=0.8, low=0.49, high=0.94)
OVERLAP = Overlap("step-1", "held-out val", 3)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps = tuple(
        StepPlan(
            index=index,
            name=draw(NAME),
            sources=tuple(draw(st.lists(TEXT, max_size=3))),
            num_rows=draw(COUNT),
            num_dropped=draw(st.none() | COUNT),
            num_heldout=draw(COUNT),
            num_optimizer_steps=draw(COUNT),
            rows_digest=draw(st.none() | TEXT),
            reference=draw(TEXT),
            policy_init=draw(TEXT),
            settings=draw(st.dictionaries(TEXT, SETTING | st.lists(SETTING, max_size=2), max_size=3)),
            source_rows=tuple(draw(st.lists(COUNT, max_size=3))),
        )
        for index in range(1, draw(st.integers(0, 3)) + 1)
    )
    return Plan(
        base_model=draw(TEXT),
        steps=steps,
        heldout=tuple(draw(st.lists(TEXT, max_size=2))),
        export_steps=draw(st.sampled_from(["all", "last"])),
        partition=draw(st.dictionaries(TEXT, SETTING | st.lists(SHARE, max_size=2), max_size=3)),
        ordering=tuple(draw(st.lists(st.builds(SourceRank, TEXT, COUNT, SHARE, SHARE, SHARE), max_size=2))),
        overlaps=tuple(draw(st.lists(st.builds(Overlap, TEXT, TEXT, COUNT), max_size=2))),
    )


@given(plans())
def test_plan_survives_its_file(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_keys_of_the_file_are_frozen() -> None:
    plan = dataclasses.replace(make_plan(), ordering=(RANK,), overlaps=(OVERLAP,))
    written = json.loads(json.dumps(plan.to_json()))
    assert list(written) == [
        "schema_version",
        "fingerprint",
        "base_model",
        "steps",
        "heldout",
        "export_steps",
        "partition",
        "ordering",
        "overlaps",
    ]
    assert written["schema_version"] == 1
    assert written["ordering"] == [{"source": "a", "num_rows": 10, "accuracy": 0.8, "low": 0.49, "high": 0.94}]
    assert written["overlaps"] == [{"step": "step-1", "other": "held-out val", "num_rows": 3}]
    assert list(written["steps"][0]) == [
        "index",
        "name",
        "sources",
        "num_rows",
        "num_dropped",
        "num_heldout",
        "num_optimizer_steps",
        "rows_digest",
        "reference",
        "policy_init",
        "settings",
        "source_rows",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "orca"),
        ("sources", ("other.jsonl",)),
        ("num_rows", 99),
        ("num_dropped", None),
        ("num_heldout", 99),
        ("num_optimizer_steps", 99),
        ("rows_digest", "f" * 64),
        ("reference", "M_9"),
        ("policy_init", "M_9"),
        ("settings", {"learning_rate": 1e-6}),
        ("source_rows", (4,)),
    ],
    ids=lambda part: str(part)[:20],
)
def test_any_change_of_a_step_changes_the_fingerprint(key: str, value: object) -> None:
    plan = make_plan()
    changed = dataclasses.replace(plan.steps[1], **{key: value})
    assert dataclasses.replace(plan, steps=(plan.steps[0], changed)).fingerprint() != plan.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"base_model": "other"},
        {"heldout": ("val",)},
        {"export_steps": "last"},
        {"steps": make_plan().steps[:1]},
        {"partition": {"strategy": "random", "seed": 1}},
        {"ordering": (RANK,)},
        {"overlaps": (OVERLAP,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_the_chain_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert dataclasses.replace(make_plan(), **change).fingerprint() != make_plan().fingerprint()


def test_fingerprint_of_equal_plans_is_equal() -> None:
    assert make_plan().fingerprint() == make_plan().fingerprint()


@pytest.mark.parametrize("version", [None, 0, 2, "1"], ids=repr)
def test_file_of_another_schema_version_is_refused(version: object) -> None:
    value = {**make_plan().to_json(), "schema_version": version}
    with pytest.raises(ValueError, match=re.escape(f"plan schema_version is {version!r}; this version reads 1")):
        Plan.from_json(value)


@pytest.mark.parametrize(
    ("key", "value"), [("base_model", "other"), ("fingerprint", "0" * 64), ("export_steps", "last")]
)
def test_file_changed_by_hand_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="plan fingerprint does not fit its content; the file was changed by hand"):
        Plan.from_json({**make_plan().to_json(), key: value})


def test_step_changed_by_hand_is_refused() -> None:
    value = make_plan().to_json()
    value["steps"][1]["num_rows"] = 5
    with pytest.raises(ValueError, match="plan fingerprint does not fit its content; the file was changed by hand"):
        Plan.from_json(value)


def swap_steps(value: dict[str, Any]) -> None:
    value["steps"] = list(reversed(value["steps"]))


def drop_heldout(value: dict[str, Any]) -> None:
    del value["heldout"]


def add_key(value: dict[str, Any]) -> None:
    value["steps"][0]["colour"] = "red"


def drop_sources(value: dict[str, Any]) -> None:
    del value["steps"][0]["sources"]


def drop_rank(value: dict[str, Any]) -> None:
    value["ordering"] = [{"source": "a"}]


def no_steps(value: dict[str, Any]) -> None:
    value["steps"] = None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swap_steps, "steps are numbered [2, 1]"),
        (add_key, "steps.0.colour is 'red': Unexpected keyword argument"),
        (drop_sources, "steps.0.sources is missing"),
        (drop_rank, "ordering.0.num_rows is missing"),
        (no_steps, "steps is None: Input should be a valid array"),
    ],
)
def test_misshapen_file_is_refused(change: Any, why: str) -> None:
    value = make_plan().to_json()
    change(value)
    with pytest.raises(ValueError, match=f"^{re.escape(f'not a plan of schema version 1: {why}')}$"):
        Plan.from_json(value)


def test_file_without_a_key_is_refused() -> None:
    value = make_plan().to_json()
    drop_heldout(value)
    with pytest.raises(ValueError, match="plan fingerprint does not fit its content; the file was changed by hand"):
        Plan.from_json(value)


@pytest.mark.parametrize("value", [[], None, "plan", 3, {}], ids=repr)
def test_json_that_is_no_plan_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan.from_json(value)


def test_steps_are_numbered_from_1_without_gaps() -> None:
    with pytest.raises(AssertionError):
        Plan("base", (make_plan().steps[1],))


def test_model_0_is_the_base_model() -> None:
    assert (model_name(0), model_name(12)) == ("M_0", "M_12")


@pytest.mark.parametrize(
    ("num_rows", "num_epochs", "batch_size", "updates"),
    [
        pytest.param(100, 1, 10, 10, id="even"),
        pytest.param(101, 1, 10, 11, id="last-batch-is-not-full"),
        pytest.param(101, 2, 10, 21, id="epochs-are-joined-before-rounding"),  # ⌈202/10⌉, not 2 · ⌈101/10⌉
        pytest.param(100, 0.25, 10, 3, id="part-of-an-epoch"),  # ⌈25/10⌉
        pytest.param(1, 1, 64, 1, id="fewer-rows-than-a-batch"),
        pytest.param(0, 3, 8, 0, id="no-rows"),
    ],
)
def test_host_total_steps(num_rows: int, num_epochs: float, batch_size: int, updates: int) -> None:
    assert host_total_steps(num_rows, num_epochs, batch_size) == updates


def test_table_of_the_plan() -> None:
    first, second = make_plan().steps
    plan = Plan(
        "base",
        (
            dataclasses.replace(first, name="orca", num_rows=12859, num_dropped=None, num_optimizer_steps=1608),
            dataclasses.replace(second, sources=("a", "b"), num_heldout=1000, source_rows=(1, 3)),
        ),
    )
    assert plan.table().splitlines() == [
        "step      sources          rows  dropped  held out  optimizer steps  reference  starts from",
        "--------  -------------  ------  -------  --------  ---------------  ---------  -----------",
        "1 orca    pairs-1.jsonl  12,859        –         0            1,608  M_0        M_0",
        "2 step-2  a (1), b (3)        4        0     1,000                4  M_1        M_1",
    ]


@pytest.mark.parametrize(
    ("sources", "source_rows", "text"),
    [
        pytest.param(("a",), (), "a", id="one"),
        pytest.param(("a",), (1200,), "a", id="one-counted"),
        pytest.param(("a", "b"), (), "a, b", id="merged-by-the-host"),
        pytest.param(("a", "b"), (2000, 10002), "a (2,000), b (10,002)", id="counted"),
        pytest.param(("a", "b", "c"), (5, 0, 7), "a (5), c (7)", id="one-without-rows"),
    ],
)
def test_sources_of_a_step(sources: tuple[str, ...], source_rows: tuple[int, ...], text: str) -> None:
    step = dataclasses.replace(make_plan().steps[0], sources=sources, source_rows=source_rows)
    assert step.describe_sources() == text


@pytest.mark.parametrize(
    ("reference", "policy_init", "gates"),
    [
        pytest.param("previous", "previous", [True, True, True], id="stepwise"),
        pytest.param("base", "previous", [True, False, False], id="reference-base"),
        pytest.param("previous", "base", [True, False, False], id="start-base"),
        pytest.param("base", "base", [True, True, True], id="both-base"),
        pytest.param("org/model", "previous", [False, False, False], id="external"),
    ],
)
def test_ln_2_gate_holds_where_a_step_starts_at_its_reference(
    reference: str, policy_init: str, gates: list[bool]
) -> None:
    plan = make_plan([[1.0]] * 3, reference=reference, policy_init=policy_init)
    assert [step.starts_at_reference for step in plan.steps] == gates


def test_text_table_sets_columns_of_numbers_to_the_right_with_their_heading() -> None:
    rows = [
        ("name", "value", "mixed", "known"),
        ("a", "-1.50", "7", "–"),
        ("longer", "+12", "n/a", ""),
        ("b", "1,000,000", "1,000,000", "0.5"),
    ]
    assert text_table(rows).splitlines() == [
        "name        value  mixed      known",
        "------  ---------  ---------  -----",
        "a           -1.50  7              –",
        "longer        +12  n/a",
        "b       1,000,000  1,000,000    0.5",
    ]


def test_text_table_of_a_heading_alone() -> None:
    assert text_table([("step", "rows")]).splitlines() == ["step  rows", "----  ----"]


@pytest.mark.parametrize(
    ("sources", "source_rows", "row", "name"),
    [
        (("a",), (), 7, "row 7 of D_1 (counted from 0; step step-1, source a)"),
        (("a",), (9,), 7, "row 7 of D_1 (counted from 0; step step-1, source a)"),
        (("a", "b"), (), 7, "row 7 of D_1 (counted from 0; step step-1, one of the sources a, b)"),
        (("a", "b", "c"), (3, 0, 5), 2, "row 2 of D_1 (counted from 0; step step-1, row 2 of those from source a)"),
        # 3 - 3 from a, none from b
        (("a", "b", "c"), (3, 0, 5), 3, "row 3 of D_1 (counted from 0; step step-1, row 0 of those from source c)"),
        (("a", "b", "c"), (3, 0, 5), 7, "row 7 of D_1 (counted from 0; step step-1, row 4 of those from source c)"),
    ],
)
def test_row_is_named_by_step_and_source(
    sources: tuple[str, ...], source_rows: tuple[int, ...], row: int, name: str
) -> None:
    step = dataclasses.replace(make_plan().steps[0], sources=sources, source_rows=source_rows)
    assert step.name_row(row) == name


def test_row_beyond_the_end_of_the_step_has_no_name() -> None:
    step = dataclasses.replace(make_plan().steps[0], sources=("a", "b"), source_rows=(3, 5))
    with pytest.raises(AssertionError, match="a row beyond the end of the step"):
        step.name_row(8)
