"""The ledger: what it begins with, its file, and every ledger that is refused."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.refresh import Refresh
from sdpo_plugin.run_dir.ledger import SCHEMA_VERSION, Ledger, StepRecord
from sdpo_plugin.run_dir.stored import write_stored
from tests.fakes import IDENTITY, each_cut, each_flipped_bit, make_plan, with_digest

FACTS: dict[str, Any] = {
    "state": "exported",
    "first_loss": 0.6931471805599453,
    "final_loss": 0.1 + 0.2,
    "num_optimizer_steps": 7,
    "beta": 0.1,
    "log_probs_seconds": 1.5,
    "diagnostics_seconds": 0.5,
    "train_seconds": 2.5,
    "export_seconds": 3.5,
    "settings": {"learning_rate": 1e-06, "optimizer": "adamw_é"},
    "kept": False,
    "called": ("before_step", "after_step"),
    "refreshes": (Refresh(5, None, 17), Refresh(10, 0.25, 8)),
    "refresh_seconds": 4.5,
}


def begin(num_steps: int = 2) -> Ledger:
    return Ledger.begin(make_plan([[1.0]] * num_steps), IDENTITY)


def full(num_steps: int = 2) -> Ledger:
    """A ledger in which nothing is as it was at the beginning."""
    ledger, numbers = begin(num_steps), range(1, num_steps + 1)
    for index in numbers:
        ledger = ledger.record(index, **FACTS)
    tables = {f"sdpo/reference/step-{index}.safetensors": "c" * 64 for index in numbers}
    exports = {f"M_{index}": "d" * 64 for index in (0, *numbers)}
    return dataclasses.replace(
        ledger,
        tables=tables,
        exports=exports,
        prepared=True,
        finished=True,
        saved=True,
        final="f" * 64,
        made_rows={f"sdpo/data/step-{index}.jsonl": "e" * 32 for index in numbers},
    )


def save(ledger: Ledger, path: Path) -> str:
    return write_stored(path, ledger, SCHEMA_VERSION)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of two steps, of which nothing is done."""
    save(begin(), tmp_path / "ledger.json")
    return tmp_path / "ledger.json"


def test_ledger_begins_with_nothing_done() -> None:
    plan = make_plan(policy_init="base")
    ledger = Ledger.begin(plan, IDENTITY)
    assert (ledger.plan, ledger.identity) == (plan, IDENTITY)
    assert (ledger.prepared, ledger.finished, ledger.saved, ledger.final) == (False, False, False, None)
    assert (ledger.tables, ledger.exports, ledger.made_rows) == ({}, {}, {})
    nothing = ("planned", None, None, None, None, None, None, None, None, {}, True, (), (), None)
    assert [dataclasses.astuple(record) for record in ledger.records] == [nothing, nothing]


def test_steps_are_pairs_of_plan_and_record() -> None:
    ledger = begin().record(2, state="training")
    assert ledger.steps == list(zip(make_plan([[1.0]] * 2).steps, ledger.records, strict=True))
    assert [record.state for _, record in ledger.steps] == ["planned", "training"]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_last_model_is_that_of_the_last_step(num_steps: int) -> None:
    assert begin(num_steps).last_model == f"M_{num_steps}"


def test_ledger_begins_with_the_tables_that_the_plan_was_made_with() -> None:
    tables = {"sdpo/pool/source-1.safetensors": "c" * 64}
    assert Ledger.begin(make_plan(), IDENTITY, tables).tables == tables


def test_every_run_has_an_id_of_its_own() -> None:
    ids = {begin().run_id for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch("[0-9a-f]{16}", run_id) for run_id in ids)


def test_record_changes_one_step_and_those_facts() -> None:
    before = begin().record(2, log_probs_seconds=4.0)
    after = before.record(2, state="training")
    assert after.records[0] == before.records[0]
    assert after.records[1] == dataclasses.replace(before.records[1], state="training")
    assert dataclasses.replace(after, records=before.records) == before


def test_record_leaves_the_earlier_ledger_alone() -> None:
    before = begin()
    copy = dataclasses.replace(before)
    before.record(1, state="training")
    assert before == copy


def test_ledger_survives_its_file(path: Path) -> None:
    ledger = full()
    save(ledger, path)
    assert Ledger.load(path) == ledger
    assert ledger.records == (StepRecord(**FACTS), StepRecord(**FACTS))


def test_keys_of_the_file_are_frozen(path: Path) -> None:
    written = json.loads(path.read_text())
    assert list(written) == [
        "schema_version",
        "run_id",
        "plan",
        "identity",
        "records",
        "prepared",
        "tables",
        "exports",
        "finished",
        "saved",
        "final",
        "made_rows",
        "from_cache",
        "lives",
        "picked",
        "digest",
    ]
    assert written["schema_version"] == SCHEMA_VERSION == 2
    assert list(written["records"][0]) == list(FACTS)


def refusal(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(OutputError) as caught:
        Ledger.load(path)
    return str(caught.value)


def test_ledger_cut_anywhere_is_refused(path: Path) -> None:
    for size in each_cut(path):
        with pytest.raises(OutputError) as caught:
            Ledger.load(path)
        assert str(caught.value).startswith(f"{path} is not a ledger of schema version 2 ("), size


def test_every_flipped_bit_is_refused_or_changes_nothing(path: Path) -> None:
    """A flip that changes nothing writes the same number or letter in another way."""
    ledger = full(num_steps=1)
    save(ledger, path)
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


def records(*states: str) -> dict[str, Any]:
    return {"records": [{"state": state} for state in states]}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("newer-version", {"schema_version": 3}, "another schema version"),
    ("older-version", {"schema_version": 1}, "another schema version"),
    ("no-version", {"schema_version": None}, "another schema version"),
    ("version-of-another-type", {"schema_version": "2"}, "another schema version"),
    ("unknown-key", {"colour": "red"}, "colour is 'red': Unexpected keyword argument"),
    ("unknown-key-of-a-record", {"records": [{"x": 1}, {}]}, "records.0.x is 1: Unexpected keyword argument"),
    ("no-records", {"records": None}, "records is None: Input should be a valid array"),
    ("empty", records(), "states in an order that no run takes: [], prepared: False"),
    ("one-record-too-few", records("planned"), "1 records for 2 steps"),
    ("one-record-too-many", records(*["planned"] * 3), "3 records for 2 steps"),
    ("unknown-state", records("done", "planned"), "records.0.state is 'done': Input should be 'planned', "),
    ("old-state", records("scored", "planned"), "records.0.state is 'scored': Input should be 'planned', "),
    ("no-state", {"records": [{"state": None}, {}]}, "records.0.state is None: Input should be 'planned', "),
    ("state-of-another-type", {"records": [{"state": []}, {}]}, "records.0.state is []: Input should be 'planned', "),
    (
        "order",
        {**records("planned", "referenced"), "prepared": True},
        "states in an order that no run takes: ['planned', 'referenced'], prepared: True",
    ),
    (
        "not-prepared",
        records("referenced", "planned"),
        "states in an order that no run takes: ['referenced', 'planned'], prepared: False",
    ),
    (
        "finished-with-nothing",
        {"prepared": True, "finished": True},
        "finished: True, saved: False with states ['planned', 'planned']",
    ),
    (
        "saved-before-it-was-finished",
        {**records("exported", "exported"), "prepared": True, "saved": True},
        "finished: False, saved: True with states ['exported', 'exported']",
    ),
]


@pytest.mark.parametrize(("change", "why"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_foreign_ledger_is_refused_with_the_reason(path: Path, change: dict[str, Any], why: str) -> None:
    message = refusal(path, with_digest({**json.loads(path.read_text()), **change}))
    assert re.fullmatch(
        rf"{re.escape(str(path))} is not a ledger of schema version 2 \(.*{re.escape(why)}.*\); "
        r"restore it, or move the output directory away, or set another output_dir\.",
        message,
    )


@pytest.mark.parametrize("key", ["run_id", "plan", "identity", "records"])
def test_ledger_without_a_key_is_refused(path: Path, key: str) -> None:
    written = json.loads(path.read_text())
    del written[key]
    assert f"({key} is missing)" in refusal(path, with_digest(written))


def test_ledger_with_a_fitting_digest_is_read(path: Path) -> None:
    """Or the refusals above would prove nothing."""
    path.write_text(with_digest({**json.loads(path.read_text()), "prepared": True}))
    assert Ledger.load(path).prepared


def test_ledger_without_a_digest_is_refused(path: Path) -> None:
    written = json.loads(path.read_text())
    del written["digest"]
    assert "(its content does not fit its digest)" in refusal(path, json.dumps(written))


def test_ledger_that_was_edited_is_refused(path: Path) -> None:
    edited = path.read_text().replace('"prepared": false', '"prepared": true')
    assert "(its content does not fit its digest)" in refusal(path, edited)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3", "{}"])
def test_json_that_is_no_ledger_is_refused(path: Path, content: str) -> None:
    assert refusal(path, content).startswith(f"{path} is not a ledger of schema version 2 (")
