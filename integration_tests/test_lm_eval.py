"""Every model evaluated by lm-eval while it is in memory, on local tasks, through the real harness."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.benchmarks import (
    BROKEN,
    CHOICE,
    WRITE,
    lm_eval_block,
    standard_error,
    write_tasks,
)
from integration_tests.harness.compare import at_once
from integration_tests.harness.data import Config, base_config, lora_config, read_rows, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.fsdp2 import fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config
from integration_tests.harness.stored_weights import weights_digests
from integration_tests.harness.zero3 import write_zero3

MODELS = ["M_0", "M_1", "M_2"]
ROWS = 13  # no number that two ranks, or batches of 4, share evenly
FULL = {"learning_rate": 1.0e-2, "gradient_checkpointing": True}
ADAPTER = {"learning_rate": 5.0e-2}
OTHER = "integration_tests.harness.benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("lm-eval")


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Path:
    """The directory with the task files."""
    return write_tasks(folder, ROWS)


@pytest.fixture(scope="module")
def both(host: Host, model: Path, two_sets: list[Config], folder: Path, tasks: Path) -> list[Path]:
    """A run that is evaluated, one of its tasks in vain, and the same run without."""
    evaluated = base_config(model, two_sets, folder / "evaluated", **FULL)
    plain = base_config(model, two_sets, folder / "plain", **FULL)
    block = lm_eval_block(tasks, BROKEN, CHOICE, WRITE)
    return at_once(
        lambda: run_sdpo(host, sdpo_config(evaluated, sdpo=block)), lambda: run_sdpo(host, sdpo_config(plain))
    )


def expected_of(host: Host, tasks: Path, *models: Path, **how: Any) -> list[dict[str, float]]:
    """What a plain loop finds of models on disk."""
    rows = read_rows(tasks.parent / "rows.jsonl")
    return at_once(*[lambda path=path: host.python(f"{OTHER}:expected", path, rows, **how) for path in models])


def found_of(out: Path, model: str) -> dict[str, float]:
    """The metrics of both tasks in the report."""
    entries = read_report(out)["lm_eval"][model]
    metrics = {**entries[CHOICE]["results"][CHOICE]["metrics"], **entries[WRITE]["results"][WRITE]["metrics"]}
    return {name: metric["value"] for name, metric in metrics.items()}


def record_of(out: Path, model: str) -> dict[str, Any]:
    """The file of a model."""
    return dict(json.loads((out / "sdpo" / "lm-eval" / f"{model}.json").read_text(encoding="utf-8")))


# --- one process ---


def test_every_model_answers_as_in_a_plain_loop(host: Host, model: Path, tasks: Path, both: list[Path]) -> None:
    """M_0 in memory is the base model, M_1 and M_2 what was exported; all three answer otherwise."""
    expected = expected_of(host, tasks, model, both[0] / "step-1", both[0])
    assert [found_of(both[0], name) for name in MODELS] == expected
    assert len({tuple(found.values()) for found in expected}) == 3


def test_standard_errors_are_those_of_the_formula(both: list[Path]) -> None:
    """Of a mean of right and wrong answers."""
    for model in MODELS:
        result = record_of(both[0], model)["entries"][CHOICE]["results"][CHOICE]
        assert (result["num_samples"], result["num_fewshot"]) == (ROWS, 0)
        for metric in result["metrics"].values():
            assert metric["stderr"] == pytest.approx(standard_error(metric["value"], ROWS))
            assert metric["higher_is_better"] is True


def test_nothing_that_trains_is_touched(both: list[Path]) -> None:
    """The bits of M_1 and M_2, the configs beside them, and the losses on the way."""
    names = ("step-1", "step-2", "")
    digests = [weights_digests([out / name for name in names]) for out in both]
    assert digests[0] == digests[1]
    for name in ("step-2/config.json", "step-2/generation_config.json", "step-2/tokenizer_config.json"):
        assert (both[0] / name).read_bytes() == (both[1] / name).read_bytes()
    losses = [[(step["first_loss"], step["final_loss"]) for step in read_report(out)["steps"]] for out in both]
    assert losses[0] == losses[1]


def test_task_that_fails_is_said_and_costs_nothing_else(both: list[Path]) -> None:
    """No password of an address reaches a file."""
    error = "ValueError: no answer to https://example.org/describe"
    assert [record_of(both[0], model)["entries"][BROKEN]["error"] for model in MODELS] == [error] * 3
    report = read_report(both[0])
    assert report["finished"]
    assert report["warnings"] == [f"lm-eval failed on {BROKEN} with {model}: {error}" for model in MODELS]
    text = (both[0] / "sdpo" / "report.md").read_text(encoding="utf-8")
    assert f"- lm-eval failed on {BROKEN} with M_1: {error}." in text
    line = next(line for line in text.splitlines() if line.startswith(f"{WRITE} "))
    assert [f"{found_of(both[0], model)['letters']:.3f}" in line for model in MODELS] == [True] * 3
    assert "secret" not in (both[0] / "debug.log").read_text(encoding="utf-8")
    assert read_report(both[1])["lm_eval"] == {}


def test_evaluation_leaves_a_model_as_it_was(host: Host, model: Path) -> None:
    """Modes, attention, cache, random numbers, logger and environment; within, the harness has what it needs."""
    before, within, after = host.python(f"{OTHER}:states_around_an_evaluation", model)
    assert before == after
    assert (before["attention"], within["attention"]) == ("sdpo_packed_0", "sdpa")
    assert (before["training"], within["training"]) == ([True, False], [False, False])
    assert within["random"] != before["random"]
    assert (within["workers"], before["workers"]) == ("1", None)


def test_adapter_first_and_last_in_its_own_words(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tasks: Path
) -> None:
    """`steps: last`, a limit for one entry, and questions in the chat template."""
    block = lm_eval_block(
        tasks, {"task": CHOICE, "limit": 5}, WRITE, steps="last", apply_chat_template=True, num_fewshot=0
    )
    out = run_sdpo(host, sdpo_config(lora_config(model, two_sets, folder / "lora", **ADAPTER), sdpo=block))
    assert sorted(path.name for path in (out / "sdpo" / "lm-eval").iterdir()) == ["M_0.json", "M_2.json"]
    assert read_report(out)["warnings"] == []
    expected = expected_of(host, tasks, model, out, limit=5, chat=True)
    assert [found_of(out, name) for name in ("M_0", "M_2")] == expected
    assert expected[0] != expected[1]
    entries = record_of(out, "M_0")["entries"]
    assert [entry["results"][name]["num_samples"] for name, entry in entries.items()] == [5, ROWS]
    assert entries[CHOICE]["settings"] == {"num_fewshot": 0, "limit": 5.0, "apply_chat_template": True}


# --- several ranks ---


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_ranks_that_share_the_model_find_what_a_plain_loop_finds(
    host: Host, model: Path, two_sets: list[Config], folder: Path, tasks: Path, engine: str
) -> None:
    """Full fine-tuning under ZeRO-3, an adapter under FSDP2; shares and texts of different length."""
    make, settings = {
        "zero3": (base_config, {**FULL, "deepspeed": str(write_zero3(folder / "zero3.json"))}),
        "fsdp2": (lora_config, {**ADAPTER, **fsdp2()}),
    }[engine]
    config = make(model, two_sets, folder / engine, micro_batch_size=2, **settings)
    out = run_sdpo(host, sdpo_config(config, sdpo=lm_eval_block(tasks, CHOICE, WRITE)), ranks=2)
    expected = expected_of(host, tasks, model, out / "step-1", out)
    assert [found_of(out, name) for name in MODELS] == expected
    assert len({tuple(found.values()) for found in expected}) == 3


def test_error_of_one_rank_is_recorded_and_ends_no_other(
    host: Host, model: Path, two_sets: list[Config], tasks: Path, tmp_path: Path
) -> None:
    """DDP, with an error in the first batch of the second rank; with padded rows nothing goes through it before."""
    config = sdpo_config(
        base_config(model, two_sets, tmp_path, micro_batch_size=2, **FULL),
        plugins=PLUGINS,
        sdpo={**lm_eval_block(tasks, CHOICE, WRITE), "packed": False},
    )
    log = train(host, write_config(tmp_path / "config.yaml", config), "pass:1:1", ranks=2).check().log_text
    error = "rank 1: KeyError: 'a fault of the test'"
    out = tmp_path / "out"
    assert log.count(f"lm-eval failed on {CHOICE} with M_0, and the run goes on: {error}") == 1
    errors = [[entry["error"] for entry in record_of(out, name)["entries"].values()] for name in MODELS]
    assert errors == [[error, None], [None, None], [None, None]]
    base, *expected = expected_of(host, tasks, model, out / "step-1", out)
    assert [found_of(out, name) for name in MODELS[1:]] == expected
    written = record_of(out, "M_0")["entries"][WRITE]["results"][WRITE]
    assert written["metrics"]["letters"]["value"] == base["letters"]


# --- resume ---


def test_stopped_killed_and_resumed(
    host: Host, model: Path, two_sets: list[Config], tasks: Path, tmp_path: Path
) -> None:
    """SIGTERM in the second task of M_0, SIGKILL in that of M_1: what is recorded is not evaluated again.

    Every step begins at the base model: in the last process M_1 stands beside the policy, which is M_0.
    """
    block = {**lm_eval_block(tasks, CHOICE, WRITE), "policy_init": "base"}
    plain = base_config(model, two_sets, tmp_path, **FULL)
    made = sdpo_config(plain, plugins=PLUGINS, auto_resume_from_checkpoints=True, sdpo=block)
    config, out = write_config(tmp_path / "config.yaml", made), tmp_path / "out"

    def end(name: str, signum: signal.Signals) -> tuple[dict[str, Any], Any]:
        """Start the run, slowly, and signal it when the first task of a model is recorded."""
        run = host.start(["train", str(config), "--launcher", "python"], tmp_path, env={"SDPO_TEST_FAULT": "slow:0.15"})
        file = out / "sdpo" / "lm-eval" / f"{name}.json"
        assert run.wait_for(file.exists), run.logs[0].read_text()[-3000:]
        run.kill(signum)
        result = run.wait()
        entries = record_of(out, name)["entries"]
        assert list(entries) == [CHOICE]
        return dict(entries[CHOICE]), result

    first, stopped = end("M_0", signal.SIGTERM)
    assert stopped.returncode == 143
    assert messages(stopped)[1] == (
        "stopped by SIGTERM: the evaluation of M_0 under way will be made again. To resume, run the same command with "
        "auto_resume_from_checkpoints: true."
    )
    second, killed = end("M_1", signal.SIGKILL)
    assert killed.returncode == -9
    log = train(host, config).check().log_text
    assert record_of(out, "M_0")["entries"][CHOICE] == first
    assert record_of(out, "M_1")["entries"][CHOICE] == second
    told = [line.partition("lm-eval of ")[2].partition(": ") for line in log.splitlines() if "lm-eval of " in line]
    assert [(model, rest.partition(":")[0]) for model, _, rest in told] == [
        *(("M_1", WRITE), ("M_2", CHOICE), ("M_2", WRITE))
    ]
    expected = expected_of(host, tasks, model, out / "step-1", out)
    assert [found_of(out, name) for name in MODELS] == expected
    assert len({tuple(found.values()) for found in expected}) == 3


# --- refused before anything is loaded ---


def test_misspelt_task_ends_the_run_before_data_are_read(
    host: Host, model: Path, two_sets: list[Config], tasks: Path, tmp_path: Path
) -> None:
    """Also where the name is one of the user's own."""
    block = lm_eval_block(tasks, "demo_choise", "helaswag", CHOICE)
    config = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path), sdpo=block))
    result = host.train(config)
    said = refused(result, tmp_path / "out", lines=2).splitlines()
    assert said[0].startswith(
        f"sdpo.lm_eval.tasks: 'demo_choise' is no task, group or tag of lm-eval; did you mean '{CHOICE}'"
    )
    assert said[1].startswith(
        "sdpo.lm_eval.tasks: 'helaswag' is no task, group or tag of lm-eval; did you mean 'hellaswag'"
    )
    assert "Loading raw datasets" not in result.log_text


def test_what_cannot_be_evaluated_is_refused(host: Host, tasks: Path, tmp_path: Path) -> None:
    """Before a run begins; one that is resumed has trained already, and does without data."""
    gone, torn = tmp_path / "gone", tmp_path / "torn"
    write_tasks(gone.parent / "elsewhere", ROWS).rename(gone)
    (gone.parent / "elsewhere" / "rows.jsonl").unlink()
    torn.mkdir()
    (torn / "task.yaml").write_text("task: [", encoding="utf-8")
    begun = {
        "nowhere": host.python(f"{OTHER}:refusal", tmp_path / "nowhere", CHOICE),
        "gone": host.python(f"{OTHER}:refusal", gone, CHOICE),
        "torn": host.python(f"{OTHER}:refusal", torn, CHOICE),
        "file": host.python(f"{OTHER}:refusal", tasks, "choice.yaml"),
        "code": host.python(f"{OTHER}:refusal", write_tasks(tmp_path / "code", ROWS, "unsafe_code: true"), CHOICE),
    }
    assert begun["nowhere"] == (
        f"sdpo.lm_eval.include_path: '{tmp_path / 'nowhere'}' is no directory; set the directory that holds your task "
        "files."
    )
    assert begun["gone"].startswith(f"sdpo.lm_eval.tasks: '{CHOICE}' cannot be loaded: FileNotFoundError: ")
    assert str(gone.parent / "elsewhere" / "rows.jsonl") in begun["gone"]
    assert begun["torn"].startswith(
        f"sdpo.lm_eval.include_path: '{torn}' holds a file that is no task of lm-eval (ParserError: "
    )
    assert begun["file"] == (
        "sdpo.lm_eval.tasks: 'choice.yaml' is no task, group or tag of lm-eval; name the task that it describes, and "
        "set include_path to its directory."
    )
    assert begun["code"] == (
        f"sdpo.lm_eval.tasks: '{CHOICE}' runs code that the model has written; take it out of tasks."
    )
    assert host.python(f"{OTHER}:refusal", gone, CHOICE, begins=False) is None
    assert host.python(f"{OTHER}:refusal", tasks, CHOICE) is None
