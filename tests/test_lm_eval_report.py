"""What lm-eval has found of each model: its files, and their part of the report."""

import dataclasses
import json
from typing import Any

import pytest

from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.lm_eval import lm_eval_results, lm_eval_table
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.evaluations import Entry, Evaluation, TaskResult, Value, load_evaluation, save_evaluation
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import die, resume
from tests.fakes import CALLS, FakeHost, HostDiedError, run

SETTINGS = {"num_fewshot": 25, "limit": None, "apply_chat_template": False}


def arc(value: float | None, stderr: float | None = 0.0125) -> Entry:
    metrics = {"acc": Value(value, stderr, True), "acc_norm": Value(0.5, None, True)}
    return Entry(SETTINGS, {"arc_challenge": TaskResult(metrics, 1172, 25)}, 12.5)


def group() -> Entry:
    """A group has a result of its own, and the tasks below it."""
    one, whole = TaskResult({"acc": Value(0.25, 0.03)}, 100, 5), TaskResult({"acc": Value(0.26, 0.01)})
    return Entry(SETTINGS, {"mmlu": whole, "mmlu_anatomy": one}, 100.0)


def tag() -> Entry:
    """A tag has none."""
    results = {name: TaskResult({"em,strict": Value(number)}, 10, 0) for name, number in (("a", 1.0), ("b", None))}
    return Entry(SETTINGS, results, 1.0)


FAILED = Entry(SETTINGS, {}, 0.5, "ValueError: no such file.")


def save(run_dir: RunDir, model: str, every_model: bool = True, run_id: str | None = None, **entries: Entry) -> None:
    run_id = run_id or Ledger.load(run_dir.ledger).run_id
    save_evaluation(run_dir, Evaluation(run_id, model, "0.4.11", every_model, entries))


@pytest.fixture
def finished(run_dir: RunDir) -> RunDir:
    """A run of two steps that has come to its end."""
    run(FakeHost(), run_dir)
    return run_dir


def found(run_dir: RunDir) -> tuple[dict[str, Any], list[str]]:
    return lm_eval_results(run_dir, Ledger.load(run_dir.ledger))


# --- the files ---


def test_file_says_what_was_found(finished: RunDir) -> None:
    save(finished, "M_1", arc_challenge=arc(0.7), mmlu=FAILED)
    run_id = Ledger.load(finished.ledger).run_id
    assert finished.lm_eval("M_1") == finished.root / "sdpo" / "lm-eval" / "M_1.json"
    read = load_evaluation(finished.lm_eval("M_1"), run_id)
    assert read == Evaluation(run_id, "M_1", "0.4.11", True, {"arc_challenge": arc(0.7), "mmlu": FAILED})


def test_entry_is_done_with_its_settings_and_without_an_error() -> None:
    evaluation = Evaluation("run", "M_1", "0.4.11", True, {"arc_challenge": arc(0.7)})
    assert evaluation.has("arc_challenge", SETTINGS)
    assert not evaluation.has("arc_challenge", {**SETTINGS, "limit": 10})
    assert not evaluation.has("mmlu", SETTINGS)
    assert not evaluation.with_entry("mmlu", FAILED).has("mmlu", SETTINGS)
    assert evaluation.with_entry("mmlu", group()).has("mmlu", SETTINGS)


# --- the report ---


def test_nothing_evaluated_is_nothing_to_say(finished: RunDir) -> None:
    assert found(finished) == ({}, [])
    report = build_report(finished)
    assert report["lm_eval"] == {}
    assert "lm-eval" not in markdown(report)


def test_models_by_tasks(finished: RunDir) -> None:
    for model, value in (("M_0", 0.6), ("M_1", 0.65), ("M_2", 0.7)):
        save(finished, model, arc_challenge=arc(value), mmlu=group())
    results, lines = found(finished)
    assert lines == []
    assert list(results) == ["M_0", "M_1", "M_2"]
    assert [entries["arc_challenge"]["results"]["arc_challenge"]["metrics"]["acc"] for entries in results.values()] == [
        {"value": value, "stderr": 0.0125, "higher_is_better": True} for value in (0.6, 0.65, 0.7)
    ]
    assert {key: results["M_2"]["arc_challenge"][key] for key in ("settings", "seconds", "error")} == {
        "settings": SETTINGS,
        "seconds": 12.5,
        "error": None,
    }
    report = build_report(finished)
    assert report["lm_eval"] == json.loads(json.dumps(results))
    table = "\n".join(
        [
            "lm-eval        metric    M_0            M_1            M_2",
            "-------------  --------  -------------  -------------  -------------",
            "arc_challenge  acc       0.600 ± 0.013  0.650 ± 0.013  0.700 ± 0.013",
            "arc_challenge  acc_norm  0.500          0.500          0.500",
            "mmlu           acc       0.260 ± 0.010  0.260 ± 0.010  0.260 ± 0.010",
        ]
    )
    assert lm_eval_table(results) == table
    assert table in markdown(report)


def test_tag_is_shown_task_by_task_and_no_number_as_a_dash(finished: RunDir) -> None:
    save(finished, "M_0", every_model=False, pair=tag())
    assert str(lm_eval_table(found(finished)[0])).splitlines()[2:] == [
        "a        em,strict  1.000",
        "b        em,strict      –",
    ]


def test_failure_is_shown_and_said(finished: RunDir) -> None:
    save(finished, "M_0", arc_challenge=arc(0.6))
    save(finished, "M_1", arc_challenge=FAILED)
    save(finished, "M_2", arc_challenge=arc(0.7), mmlu=FAILED)
    results, lines = found(finished)
    assert str(lm_eval_table(results)).splitlines()[2].split() == [
        *("arc_challenge", "acc", "0.600", "±", "0.013", "failed", "0.700", "±", "0.013")
    ]
    assert lines == [
        "lm-eval failed on arc_challenge with M_1: ValueError: no such file",
        "lm-eval failed on mmlu with M_2: ValueError: no such file",
    ]
    assert "- lm-eval failed on mmlu with M_2: ValueError: no such file.\n" in markdown(build_report(finished))


def test_only_failures_make_no_table(finished: RunDir) -> None:
    save(finished, "M_0", arc_challenge=FAILED)
    assert lm_eval_table(found(finished)[0]) is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"{", "EOF while parsing an object at line 1 column 1", id="torn"),
        pytest.param(b"[]", "not an evaluation of schema version 1", id="list"),
        pytest.param(b'{"schema_version": 2}', "not an evaluation of schema version 1", id="newer"),
        pytest.param(b'{"schema_version": 1, "model": "M_1"}', "run_id is missing", id="part"),
    ],
)
def test_damaged_file_costs_its_column(finished: RunDir, content: bytes, why: str) -> None:
    save(finished, "M_0", arc_challenge=arc(0.6))
    save(finished, "M_2", arc_challenge=arc(0.7))
    finished.lm_eval("M_1").write_bytes(content)
    results, lines = found(finished)
    assert list(results) == ["M_0", "M_2"]
    assert lines == [f"what lm-eval found of M_1 is not shown: {finished.lm_eval('M_1')} cannot be read: {why}"]


def test_file_of_another_run_or_model_is_not_shown(finished: RunDir) -> None:
    for model in ("M_0", "M_1"):
        save(finished, model, arc_challenge=arc(0.6))
    save(finished, "M_2", run_id="another", arc_challenge=arc(0.7))
    finished.lm_eval("M_0").write_bytes(finished.lm_eval("M_1").read_bytes())
    results, lines = found(finished)
    assert list(results) == ["M_1"]
    assert [line.partition("cannot be read: ")[2] for line in lines] == [
        "it is of another model (M_1)",
        "it is of another run (another)",
    ]


def test_missing_file_is_said_where_the_model_has_come_by(finished: RunDir) -> None:
    save(finished, "M_0", arc_challenge=arc(0.6))
    save(finished, "M_2", arc_challenge=arc(0.7))
    assert found(finished)[1] == [f"lm-eval has not evaluated M_1: {finished.lm_eval('M_1')} does not exist"]


def test_first_and_last_alone_are_missed_where_only_they_are_evaluated(finished: RunDir) -> None:
    save(finished, "M_0", every_model=False, arc_challenge=arc(0.6))
    assert found(finished)[1] == [f"lm-eval has not evaluated M_2: {finished.lm_eval('M_2')} does not exist"]


def test_model_that_has_not_come_by_is_not_missed(run_dir: RunDir) -> None:
    """The run has died before the reference table of D_2 was made, and so before M_1 was done with."""
    die(run_dir, "table of D_2 by M_1")
    save(run_dir, "M_0", arc_challenge=arc(0.6))
    assert found(run_dir)[1] == []


# --- when a run evaluates ---


def test_every_model_is_evaluated_while_the_policy_is_that_model(run_dir: RunDir) -> None:
    host = FakeHost()
    run_id = run(host, run_dir).run_id
    assert host.evaluations == [(model, model, run_id) for model in ("M_0", "M_1", "M_2")]


class Evaluating(FakeHost):
    """Its evaluations are calls too."""

    def evaluate(self, model: str, run_id: str) -> None:
        super().evaluate(model, run_id)
        self._called(f"evaluate {model}")


@pytest.mark.parametrize(
    ("model", "before"),
    [
        ("M_0", "table of D_1 by M_0"),
        ("M_1", "table of D_2 by M_1"),
        ("M_2", "held-out tables by M_2, called M_2"),
    ],
)
def test_evaluation_comes_before_the_tables_of_the_model(run_dir: RunDir, model: str, before: str) -> None:
    """A process that dies in it has no table to lose."""
    host = Evaluating(dies_in=f"evaluate {model}")
    with pytest.raises(HostDiedError):
        run(host, run_dir)
    assert [call for call in host.calls if not call.startswith("evaluate")] == CALLS[: CALLS.index(before)]


@pytest.mark.parametrize(
    ("dies_in", "left"),
    [
        ("held-out tables by M_1, called M_1", ["M_1", "M_2"]),  # the host skips what it has a file of
        ("train M_1 on D_2", ["M_2"]),
        ("held-out tables by M_2, called M_2", ["M_2"]),
    ],
)
def test_resumed_run_evaluates_what_it_has_in_memory(run_dir: RunDir, dies_in: str, left: list[str]) -> None:
    die(run_dir, dies_in)
    host = FakeHost()
    ledger = resume(run_dir, host)
    assert host.evaluations == [(model, model, ledger.run_id) for model in left]


def test_finished_run_evaluates_nothing(finished: RunDir) -> None:
    ledger = dataclasses.replace(Ledger.load(finished.ledger))
    host = FakeHost()
    assert resume(finished, host) == ledger
    assert host.evaluations == []
