"""The ledger and the layout of an output directory."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import fingerprint
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from tests.fakes import IDENTITY, each_cut, each_flipped_bit, make_plan

STEP = {"index": 1, "name": "a", "reference": "M_0", "policy_init": "M_0"}
FACTS: dict[str, Any] = {
    "state": "exported",
    "first_loss": 0.6931471805599453,
    "final_loss": 0.1 + 0.2,
    "num_optimizer_steps": 7,
    "score_seconds": 1.5,
    "train_seconds": 2.5,
    "export_seconds": 3.5,
    "settings": {"learning_rate": 1e-06, "optimizer": "adamw_é"},
    "kept": False,
}


def begin() -> Ledger:
    return Ledger.begin(make_plan(), IDENTITY)


def full() -> Ledger:
    """A ledger in which nothing is as it was at the beginning."""
    ledger = begin().record(1, **FACTS).record(2, **FACTS)
    tables = {f"sdpo/reference/step-{index}.safetensors": "c" * 64 for index in (1, 2)}
    exports = {f"M_{index}": "d" * 64 for index in range(3)}
    return dataclasses.replace(ledger, tables=tables, exports=exports, prepared=True, finished=True, saved=True)


def seal(content: dict[str, Any]) -> str:
    """A ledger file with this content whose checksum fits."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return json.dumps({**content, "checksum": fingerprint(content)})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (lambda run, step: run.plan, "sdpo/plan.json"),
        (lambda run, step: run.ledger, "sdpo/ledger.json"),
        (lambda run, step: run.lock, "sdpo/lock"),
        (lambda run, step: run.report, "sdpo/report.json"),
        (lambda run, step: run.start, "sdpo/start"),
        (lambda run, step: run.staging, "sdpo/staging"),
        (lambda run, step: run.pool(1), "sdpo/pool/source-1.safetensors"),
        (lambda run, step: run.reference(step), "sdpo/reference/step-2.safetensors"),
        (lambda run, step: run.score("M_0", step), "sdpo/scores/M_0-step-2.safetensors"),
        (lambda run, step: run.heldout("M_1", 0), "sdpo/heldout/M_1-1.safetensors"),
        (lambda run, step: run.step(step), "step-2"),
    ],
    ids=["plan", "ledger", "lock", "report", "start", "staging", "pool", "reference", "score", "heldout", "step"],
)
def test_layout(path: Any, expected: str) -> None:
    assert path(RunDir(Path("out")), make_plan().steps[1]) == Path("out") / expected


def test_tables_lie_in_the_folders_that_hold_tables(run_dir: RunDir) -> None:
    step = make_plan().steps[0]
    paths = (run_dir.pool(1), run_dir.reference(step), run_dir.score("M_0", step), run_dir.heldout("M_0", 0))
    assert tuple(path.parent for path in paths) == run_dir.tables


def test_ledger_calls_a_file_by_its_path_below_the_output_directory(run_dir: RunDir) -> None:
    assert run_dir.key(run_dir.reference(make_plan().steps[1])) == "sdpo/reference/step-2.safetensors"


def test_ledger_begins_with_nothing_done() -> None:
    plan = make_plan(policy_init="base")
    ledger = Ledger.begin(plan, IDENTITY)
    assert (ledger.plan_fingerprint, ledger.identity) == (plan.fingerprint(), IDENTITY)
    assert (ledger.prepared, ledger.finished, ledger.saved, ledger.tables, ledger.exports) == (
        *(False, False, False),
        *({}, {}),
    )
    assert ledger.steps == (
        StepRecord(1, "step-1", "M_0", "M_0", "planned"),
        StepRecord(2, "step-2", "M_1", "M_0", "planned"),
    )
    nothing = (None, None, None, None, None, None, {}, True)
    assert [dataclasses.astuple(step)[5:] for step in ledger.steps] == [nothing, nothing]


def test_ledger_begins_with_the_tables_that_the_plan_was_made_with() -> None:
    tables = {"sdpo/pool/source-1.safetensors": "c" * 64}
    assert Ledger.begin(make_plan(), IDENTITY, tables).tables == tables


def test_every_run_has_a_name_of_its_own() -> None:
    names = {begin().run for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def test_record_changes_one_step_and_those_facts() -> None:
    before = begin().record(2, score_seconds=4.0)
    after = before.record(2, state="training")
    assert after.steps[0] == before.steps[0]
    assert after.steps[1] == dataclasses.replace(before.steps[1], state="training")


def test_record_leaves_the_earlier_ledger_alone() -> None:
    before = begin()
    copy = dataclasses.replace(before)
    before.record(1, state="training")
    assert before == copy


def test_ledger_survives_its_file(run_dir: RunDir) -> None:
    ledger = full()
    ledger.save(run_dir.ledger)
    assert Ledger.load(run_dir.ledger) == ledger
    assert ledger.steps[0] == StepRecord(1, "step-1", "M_0", "M_0", **FACTS)


def test_keys_of_the_file_are_frozen(run_dir: RunDir) -> None:
    begin().save(run_dir.ledger)
    written = json.loads(run_dir.ledger.read_text())
    assert list(written) == [
        "schema_version",
        "run",
        "plan_fingerprint",
        "identity",
        "steps",
        "prepared",
        "tables",
        "exports",
        "finished",
        "saved",
        "final",
        "checksum",
    ]
    assert written["schema_version"] == 1
    assert list(written["steps"][0]) == ["index", "name", "reference", "policy_init", *FACTS]


def refusal(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(OutputError) as caught:
        Ledger.load(path)
    return str(caught.value)


def test_ledger_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    begin().save(path)
    for size in each_cut(path):
        with pytest.raises(OutputError) as caught:
            Ledger.load(path)
        assert str(caught.value).startswith(f"{path} is not a ledger of schema version 1 ("), size


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """What changes nothing are other ways to write the same number or letter in JSON."""
    exports = {f"M_{index}": "d" * 64 for index in (0, 1)}
    path, ledger = tmp_path / "ledger.json", dataclasses.replace(full(), steps=full().steps[:1], exports=exports)
    ledger.save(path)
    whole, harmless = path.read_bytes(), set()
    for data in each_flipped_bit(path):
        try:
            loaded = Ledger.load(path)
        except OutputError:
            continue
        assert loaded == ledger
        at = next(at for at, (old, new) in enumerate(zip(whole, data, strict=True)) if old != new)
        line = whole.rfind(b"\n", 0, at) + 1
        harmless.add(data[line : data.index(b"\n", line)].strip().decode())
    assert harmless == {
        *('"final_loss": 0.30000000000000005,', '"final_loss": 0.30000000000000006,'),
        *('"learning_rate": 1E-06,', '"optimizer": "adamw_\\u00E9"'),
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"schema_version": 2}, "another schema version", id="newer-version"),
        pytest.param({"schema_version": None}, "another schema version", id="no-version"),
        pytest.param({"colour": "red"}, "colour is 'red': Unexpected keyword argument", id="unknown-key"),
        pytest.param({"steps": [{"index": 1}]}, "steps.0.name is missing", id="step-without-name"),
        pytest.param({"steps": [{**STEP, "x": 1}]}, "steps.0.x is 1: Unexpected keyword argument", id="step-key"),
        pytest.param({"steps": None}, "steps is None: Input should be a valid array", id="no-steps"),
        pytest.param({"steps": []}, "states in an order that no run takes: [], prepared: False", id="empty"),
        pytest.param(
            {"steps": [{**STEP, "state": "done"}, STEP]},
            "steps.0.state is 'done': Input should be 'planned', ",
            id="unknown-state",
        ),
        pytest.param(
            {"steps": [{**STEP, "state": None}]}, "steps.0.state is None: Input should be 'planned', ", id="no-state"
        ),
        pytest.param(
            {"steps": [{**STEP, "state": []}]}, "steps.0.state is []: Input should be 'planned', ", id="state-of-a-kind"
        ),
        pytest.param(
            {"steps": [STEP, {**STEP, "state": "scored"}], "prepared": True},
            "states in an order that no run takes: ['planned', 'scored'], prepared: True",
            id="order",
        ),
        pytest.param(
            {"steps": [{**STEP, "state": "scored"}]},
            "states in an order that no run takes: ['scored'], prepared: False",
            id="not-prepared",
        ),
        pytest.param(
            {"steps": [STEP], "prepared": True, "finished": True},
            "finished: True, saved: False with states ['planned']",
            id="finished-with-nothing",
        ),
        pytest.param(
            {"steps": [{**STEP, "state": "exported"}], "prepared": True, "saved": True},
            "finished: False, saved: True with states ['exported']",
            id="saved-before-it-was-finished",
        ),
    ],
)
def test_foreign_ledger_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "ledger.json"
    begin().save(path)
    message = refusal(path, seal({**json.loads(path.read_text()), **change}))
    assert re.fullmatch(
        rf"{re.escape(str(path))} is not a ledger of schema version 1 \(.*{re.escape(why)}.*\); "
        r"restore it, or move the output directory away, or set another output_dir\.",
        message,
    )


def test_ledger_without_a_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    begin().save(path)
    written = json.loads(path.read_text())
    del written["checksum"]
    assert "('checksum')" in refusal(path, json.dumps(written))


def test_ledger_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    begin().save(path)
    assert "(its content does not fit its checksum)" in refusal(
        path, path.read_text().replace('"prepared": false', '"prepared": true')
    )


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3", "{}"])
def test_json_that_is_no_ledger_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.json"
    assert refusal(path, content).startswith(f"{path} is not a ledger of schema version 1 (")
