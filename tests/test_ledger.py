"""The ledger and the layout of an output directory."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.ledger import Ledger, RunDir, require_fresh
from tests.fakes import make_plan

FACTS = {
    "state": "exported",
    "first_loss": 0.6931471805599453,
    "final_loss": 0.1 + 0.2,
    "num_optimizer_steps": 7,
    "score_seconds": 1.5,
    "train_seconds": 2.5,
    "export_seconds": 3.5,
}


def save_states(run: RunDir, *states: str) -> None:
    ledger = Ledger.begin(make_plan())
    for index, state in enumerate(states, 1):
        ledger = ledger.record(index, state=state)
    ledger.save(run.ledger)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (lambda run, step: run.plan, "sdpo/plan.json"),
        (lambda run, step: run.ledger, "sdpo/ledger.json"),
        (lambda run, step: run.report, "sdpo/report.json"),
        (lambda run, step: run.reference(step), "sdpo/reference/step-2.safetensors"),
        (lambda run, step: run.score("M_0", step), "sdpo/scores/M_0-step-2.safetensors"),
        (lambda run, step: run.heldout("M_1", 0), "sdpo/heldout/M_1-1.safetensors"),
        (lambda run, step: run.step(step), "step-2"),
    ],
    ids=["plan", "ledger", "report", "reference", "score", "heldout", "step"],
)
def test_layout(path: Any, expected: str) -> None:
    assert path(RunDir(Path("out")), make_plan().steps[1]) == Path("out") / expected


def test_ledger_begins_with_nothing_done() -> None:
    ledger = Ledger.begin(make_plan())
    assert (ledger.plan_fingerprint, ledger.finished) == (make_plan().fingerprint(), False)
    assert [(step.index, step.name, step.state) for step in ledger.steps] == [
        (1, "step-1", "planned"),
        (2, "step-2", "planned"),
    ]
    assert all(value is None for step in ledger.steps for value in dataclasses.astuple(step)[3:])


def test_record_changes_one_step_and_those_facts() -> None:
    before = Ledger.begin(make_plan()).record(2, score_seconds=4.0)
    after = before.record(2, state="training")
    assert after.steps[0] == before.steps[0]
    assert after.steps[1] == dataclasses.replace(before.steps[1], state="training")


def test_record_leaves_the_earlier_ledger_alone() -> None:
    before = Ledger.begin(make_plan())
    before.record(1, state="training")
    assert before == Ledger.begin(make_plan())


def test_ledger_survives_its_file(run_dir: RunDir) -> None:
    ledger = dataclasses.replace(Ledger.begin(make_plan()).record(1, **FACTS), finished=True)
    ledger.save(run_dir.ledger)
    assert Ledger.load(run_dir.ledger) == ledger


def test_keys_of_the_file_are_frozen(run_dir: RunDir) -> None:
    Ledger.begin(make_plan()).save(run_dir.ledger)
    written = json.loads(run_dir.ledger.read_text())
    assert list(written) == ["schema_version", "plan_fingerprint", "steps", "finished"]
    assert written["schema_version"] == 1
    assert list(written["steps"][0]) == ["index", "name", *FACTS]


def refusal(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(OutputError) as caught:
        Ledger.load(path)
    return str(caught.value)


def test_ledger_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    Ledger.begin(make_plan()).save(path)
    whole = path.read_text().removesuffix("\n")
    for size in [*range(0, len(whole), 9), len(whole) - 1]:
        assert refusal(path, whole[:size]).startswith(f"{path} is not a ledger of schema version 1 (")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"schema_version": 2}, "another schema version", id="newer-version"),
        pytest.param({"schema_version": None}, "another schema version", id="no-version"),
        pytest.param({"colour": "red"}, "unexpected keyword argument 'colour'", id="unknown-key"),
        pytest.param({"steps": [{"index": 1}]}, "required positional argument: 'name'", id="step-without-name"),
        pytest.param({"steps": [{"index": 1, "name": "a", "x": 1}]}, "unexpected keyword argument 'x'", id="step-key"),
        pytest.param({"steps": None}, "'NoneType' object is not iterable", id="no-steps"),
        pytest.param(
            {"steps": [{"index": 1, "name": "a", "state": "done"}, {"index": 2, "name": "b", "state": "scored"}]},
            "unknown state ['done']",
            id="unknown-state",
        ),
        pytest.param({"steps": [{"index": 1, "name": "a", "state": None}]}, "unknown state [None]", id="no-state"),
        pytest.param(
            {"steps": [{"index": 1, "name": "a", "state": []}]}, "unhashable type: 'list'", id="state-of-a-kind"
        ),
    ],
)
def test_foreign_ledger_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "ledger.json"
    Ledger.begin(make_plan()).save(path)
    message = refusal(path, json.dumps({**json.loads(path.read_text()), **change}))
    assert re.fullmatch(
        rf"{re.escape(str(path))} is not a ledger of schema version 1 \(.*{re.escape(why)}\); "
        r"move the output directory away or set another output_dir\.",
        message,
    )


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3", "{}"])
def test_json_that_is_no_ledger_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.json"
    assert refusal(path, content).startswith(f"{path} is not a ledger of schema version 1 (")


def test_output_directory_without_a_ledger_is_fresh(run_dir: RunDir) -> None:
    require_fresh(run_dir)
    assert not run_dir.root.exists()


@pytest.mark.parametrize("state", ["planned", "scored", "training"])
def test_output_directory_without_a_finished_step_is_fresh(run_dir: RunDir, state: str) -> None:
    save_states(run_dir, state)
    require_fresh(run_dir)


@pytest.mark.parametrize(
    ("states", "names"),
    [
        (("trained",), "step-1"),
        (("exported",), "step-1"),
        (("exported", "training"), "step-1"),
        (("exported", "trained"), "step-1, step-2"),
    ],
    ids=str,
)
def test_output_directory_with_finished_steps_is_refused(run_dir: RunDir, states: tuple[str, ...], names: str) -> None:
    save_states(run_dir, *states)
    expected = (
        f"output_dir: {str(run_dir.root)!r} holds finished steps of an earlier run ({names}), "
        "and training would overwrite them; set another output_dir, or move or delete this one."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        require_fresh(run_dir)


def test_output_directory_with_a_torn_ledger_is_not_fresh(run_dir: RunDir) -> None:
    run_dir.ledger.parent.mkdir(parents=True)
    run_dir.ledger.write_text('{"schema_version": 1, "steps"')
    with pytest.raises(OutputError, match=re.escape(f"{run_dir.ledger} is not a ledger of schema version 1 (")):
        require_fresh(run_dir)
