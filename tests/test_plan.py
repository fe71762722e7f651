"""The plan: its steps, its table, the names of its rows."""

import dataclasses

import pytest

from sdpo_plugin.plan import Plan, host_total_steps, model_name
from tests.fakes import make_plan


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
        "step      sources          rows  dropped  held out  updates  reference  starts from",
        "--------  -------------  ------  -------  --------  -------  ---------  -----------",
        "1 orca    pairs-1.jsonl  12,859        –         0    1,608  M_0        M_0",
        "2 step-2  a (1), b (3)        4        0     1,000        4  M_1        M_1",
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
