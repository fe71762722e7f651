"""The plan in a ledger: read back as it was written, or refused with the reason."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import OutputError
from sdpo_plugin.names import is_step_name
from sdpo_plugin.plan import LeftOut, OrderedSource, Overlap, Plan, RatedSource, StepPlan, model_name
from sdpo_plugin.refresh import RefreshRule
from sdpo_plugin.run_dir.ledger import SCHEMA_VERSION, Ledger, StepRecord
from sdpo_plugin.run_dir.stored import write_stored
from tests.fakes import IDENTITY, make_plan, with_digest

TEXT = st.text(max_size=10)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(is_step_name)
COUNT = st.integers(0, 10**9)
SHARE = st.floats(0, 1)
SETTING = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT

RANK = OrderedSource("a", num_rows=10, accuracy=0.8, low=0.49, high=0.94)
OVERLAP = Overlap("step-1", "held-out val", 3)
RATED = RatedSource("a", num_rows=10, mean=-1.5)
LEFT_OUT = LeftOut("a", num_rows=2, of_rows=12, key="max_rows")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique_by=str.lower))
    steps = tuple(
        StepPlan(
            index=index,
            name=name,
            sources=tuple(draw(st.lists(TEXT, max_size=3))),
            num_rows=draw(COUNT),
            num_dropped=draw(st.none() | COUNT),
            num_heldout=draw(COUNT),
            num_optimizer_steps=draw(COUNT),
            rows_digest=draw(st.none() | TEXT),
            reference=draw(TEXT),
            policy_init=draw(st.sampled_from([model_name(0), model_name(index - 1)])),
            settings=draw(st.dictionaries(TEXT, SETTING | st.lists(SETTING, max_size=2), max_size=3)),
            source_rows=tuple(draw(st.lists(COUNT, max_size=3))),
            is_awaited=draw(st.booleans()),
            refresh=draw(
                st.none() | st.builds(RefreshRule, COUNT) | st.builds(RefreshRule, st.none(), st.floats(0, 9))
            ),
            is_unranked=draw(st.booleans()),
        )
        for index, name in enumerate(names, 1)
    )
    return Plan(
        base_model=draw(TEXT),
        steps=steps,
        heldout=tuple(draw(st.lists(TEXT, max_size=2))),
        export_steps=draw(st.sampled_from(["all", "last"])),
        partition=draw(st.dictionaries(TEXT, SETTING | st.lists(SHARE, max_size=2), max_size=3)),
        ordering=tuple(draw(st.lists(st.builds(OrderedSource, TEXT, COUNT, SHARE, SHARE, SHARE), max_size=2))),
        overlaps=tuple(draw(st.lists(st.builds(Overlap, TEXT, TEXT, COUNT), max_size=2))),
        left_out=tuple(draw(st.lists(st.builds(LeftOut, TEXT, COUNT, COUNT, TEXT), max_size=2))),
    )


def save(plan: Plan, path: Path) -> str:
    """Write a ledger of this plan, the same in all else; its digest."""
    ledger = Ledger("r", plan, IDENTITY, tuple(StepRecord() for _ in plan.steps))
    return write_stored(path, ledger, SCHEMA_VERSION)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of the plan of two steps."""
    save(make_plan(), tmp_path / "ledger.json")
    return tmp_path / "ledger.json"


@pytest.fixture(scope="module")
def one_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger") / "ledger.json"


@given(plan=plans())
def test_plan_survives_the_ledgers_file(one_path: Path, plan: Plan) -> None:
    save(plan, one_path)
    assert Ledger.load(one_path).plan == plan


def test_keys_of_the_plan_are_frozen(path: Path) -> None:
    save(
        dataclasses.replace(make_plan(), ordering=(RANK,), overlaps=(OVERLAP,), left_out=(LEFT_OUT,), rated=(RATED,)),
        path,
    )
    written = json.loads(path.read_text())["plan"]
    assert list(written) == [
        "base_model",
        "steps",
        "heldout",
        "export_steps",
        "partition",
        "ordering",
        "overlaps",
        "diagnostics",
        "left_out",
        "rated",
    ]
    assert written["ordering"] == [{"source": "a", "num_rows": 10, "accuracy": 0.8, "low": 0.49, "high": 0.94}]
    assert written["overlaps"] == [{"step": "step-1", "other": "held-out val", "num_rows": 3}]
    assert written["rated"] == [{"source": "a", "num_rows": 10, "mean": -1.5}]
    assert written["left_out"] == [{"source": "a", "num_rows": 2, "of_rows": 12, "key": "max_rows"}]
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
        "is_awaited",
        "refresh",
        "is_unranked",
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
def test_any_change_of_a_step_changes_the_digest(path: Path, key: str, value: object) -> None:
    plan = make_plan()
    changed = dataclasses.replace(plan.steps[1], **{key: value})  # type: ignore[arg-type]
    assert save(dataclasses.replace(plan, steps=(plan.steps[0], changed)), path) != save(plan, path)


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
        {"left_out": (LEFT_OUT,)},
        {"rated": (RATED,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_the_chain_changes_the_digest(path: Path, change: dict[str, Any]) -> None:
    assert save(dataclasses.replace(make_plan(), **change), path) != save(make_plan(), path)


def test_digest_of_equal_plans_is_equal(path: Path) -> None:
    assert save(make_plan(), path) == save(make_plan(), path)


def refusal(path: Path, content: str) -> str:
    path.write_text(content)
    start = f"{path} is not a ledger of schema version 2 ("
    with pytest.raises(OutputError, match=f"^{re.escape(start)}") as caught:
        Ledger.load(path)
    return str(caught.value)


def drop_heldout(plan: dict[str, Any]) -> None:
    del plan["heldout"]


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(base_model="other"),
        lambda plan: plan.update(export_steps="last"),
        lambda plan: plan["steps"][1].update(num_rows=5),
        drop_heldout,
    ],
    ids=["base_model", "export_steps", "step", "key"],
)
def test_plan_changed_by_hand_is_refused(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    written = json.loads(path.read_text())
    change(written["plan"])
    assert "(its content does not fit its digest)" in refusal(path, json.dumps(written))


def swap_steps(plan: dict[str, Any]) -> None:
    plan["steps"] = list(reversed(plan["steps"]))


def add_key(plan: dict[str, Any]) -> None:
    plan["steps"][0]["colour"] = "red"


def drop_sources(plan: dict[str, Any]) -> None:
    del plan["steps"][0]["sources"]


def drop_rank(plan: dict[str, Any]) -> None:
    plan["ordering"] = [{"source": "a"}]


def no_steps(plan: dict[str, Any]) -> None:
    plan["steps"] = None


def rename(plan: dict[str, Any]) -> None:
    plan["steps"][1]["name"] = "STEP-1"


def start_from_the_step_after(plan: dict[str, Any]) -> None:
    plan["steps"][0]["policy_init"] = "M_1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swap_steps, "plan: steps are numbered [2, 1]"),
        (add_key, "plan.steps.0.colour is 'red': Unexpected keyword argument"),
        (drop_sources, "plan.steps.0.sources is missing"),
        (drop_rank, "plan.ordering.0.num_rows is missing"),
        (no_steps, "plan.steps is None: Input should be a valid array"),
        (rename, "two steps have one name: ['step-1', 'STEP-1']"),
        (start_from_the_step_after, "step 1 starts from 'M_1'"),
    ],
)
def test_misshapen_plan_is_refused(path: Path, change: Callable[[dict[str, Any]], None], why: str) -> None:
    """With a digest that fits."""
    written = json.loads(path.read_text())
    change(written["plan"])
    assert f"({why})" in refusal(path, with_digest(written))


@pytest.mark.parametrize("value", [[], None, "plan", 3, {}], ids=repr)
def test_json_that_is_no_plan_is_refused(path: Path, value: Any) -> None:
    written = {**json.loads(path.read_text()), "plan": value}
    why = "plan.base_model is missing" if value == {} else f"plan is {value!r}: Input should be "
    assert f"({why}" in refusal(path, with_digest(written))
