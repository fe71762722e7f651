"""Every command of the host takes the file of a stepwise run, in both ways of writing the steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, lora_config, write_config
from integration_tests.harness.fresh import run_fresh, run_torchrun
from integration_tests.harness.launch import Host
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config
from integration_tests.harness.stored_weights import weights_digest
from integration_tests.harness.zero3 import write_zero3

PROBES = "integration_tests.harness.probes"
# The host's Triton kernels for LoRA, which `axolotl inference` turns on by itself, need a GPU.
ON_CPU = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
COLUMNS = ["step", "sources", "rows", "dropped", "held out", "updates", "reference", "starts from"]


@dataclass(frozen=True)
class Session:
    """One config file, and the result of each command on it, in this order."""

    config: Path
    out: Path
    names: list[str]
    preprocess: Result
    train: Result
    evaluate: Result
    inference: Result
    merge: Result
    merge_step: Result


@pytest.fixture(scope="module", params=["datasets", "steps"])
def session(
    request: pytest.FixtureRequest,
    host: Host,
    model: Path,
    two_sets: list[Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> Session:
    """A LoRA run by the commands a user types, from one file, with held-out rows."""
    folder = tmp_path_factory.mktemp(request.param)
    names = ["step-1", "step-2"]
    overrides: dict[str, Any] = {"val_set_size": 0.25, "eval_strategy": "epoch", **ON_CPU}
    if request.param == "steps":
        names = ["easy", "hard"]
        steps = [{"name": name, "datasets": [entry]} for name, entry in zip(names, two_sets, strict=True)]
        overrides |= {"datasets": None, "sdpo": {"steps": steps}}
    config = write_config(folder / "config.yaml", sdpo_config(lora_config(model, two_sets, folder), **overrides))
    out = folder / "out"

    def run(*args: str, **options: Any) -> Result:
        return host.run([args[0], str(config), *args[1:]], folder, **options)

    return Session(
        config=config,
        out=out,
        names=names,
        preprocess=run("preprocess"),
        train=run("train", "--launcher", "python"),
        evaluate=run("evaluate", "--launcher", "python"),
        inference=run("inference", "--launcher", "python", "--lora-model-dir", str(out), stdin="what is a river\n"),
        merge=run("merge-lora"),
        merge_step=run("merge-lora", "--lora-model-dir", str(out / names[0]), "--output-dir", str(folder / "one")),
    )


def test_preprocess_prints_the_plan(session: Session, two_sets: list[Config]) -> None:
    """All columns, with the rows that are kept and those that are dropped, before a model is loaded."""
    log = session.preprocess.check().log_text
    heading, _, *rows = log[log.index("\nstep ") + 1 :].splitlines()[:4]
    assert re.split(r" {2,}", heading.strip()) == COLUMNS
    wanted = [("18", "2", "6", "5", "M_0", "M_0"), ("24", "0", "8", "6", "M_1", "M_1")]
    for number, (row, name, entry, facts) in enumerate(zip(rows, session.names, two_sets, wanted, strict=True), 1):
        assert tuple(re.split(r" {2,}", row.strip())) == (f"{number} {name}", f"{entry['path']}:train", *facts)
    assert "Loading model" not in log


def test_train_reads_what_preprocess_prepared(session: Session) -> None:
    """No step is prepared a second time."""
    assert session.preprocess.log_text.count("Unable to find prepared dataset") == 2
    log = session.train.check().log_text
    assert log.count("Loading prepared dataset from disk") == 2
    assert "Unable to find prepared dataset" not in log
    assert "Mapping RL Dataset" not in log


def test_train_shows_where_it_is(session: Session) -> None:
    """The reference pass names model and data, the training bar names the step."""
    log = session.train.log_text
    places = [
        log.index(mark)
        for mark in ("log-probs of D_1 by M_0", f"step 1/2 {session.names[0]}", "log-probs of D_2 by M_1")
    ]
    assert places == sorted(places)
    assert f"step 2/2 {session.names[1]}" in log[places[-1] :]


def test_evaluate_reports_the_held_out_sets_under_the_final_adapter(session: Session) -> None:
    """The sets of both steps, without a row that was trained on; the numbers are those of the run's own report."""
    log = session.evaluate.check().log_text
    assert f"evaluating M_2 from {session.out}" in log
    heading, *lines = (session.out / "eval_summary.csv").read_text().splitlines()
    assert heading == "metric,training,validation"
    found = {name: float(value) for name, training, value in (line.split(",") for line in lines) if training == ""}
    report = read_report(session.out)
    expected = {}
    for column, name in enumerate(report["heldout"]["sets"]):
        expected[f"{name}_gamma"] = report["heldout"]["gamma"][2][column]
        expected[f"{name}_reference_free_accuracy"] = report["heldout"]["reference_free_accuracy"][2][column]
        expected[f"{name}_implicit_reward_accuracy"] = report["heldout"]["implicit_reward_accuracy"][2][column]
    assert len(found) == len(lines) == 6
    assert found == pytest.approx(expected, abs=1e-4)


def test_inference_answers(session: Session) -> None:
    """With the adapter of the whole chain, a prompt from stdin."""
    log = session.inference.check().log_text
    assert "what is a river<|im_end|>" in log
    assert "<|im_start|>assistant" in log


def test_merge_lora(session: Session, host: Host, model: Path) -> None:
    """The final adapter by default, and M_1 by its directory; each merged model is another one."""
    for result in (session.merge, session.merge_step):
        result.check()
    final, first = session.out / "merged", session.out.parent / "one" / "merged"
    assert host.python(f"{PROBES}:load_ok", final)["class"] == "LlamaForCausalLM"
    assert host.python(f"{PROBES}:max_abs_diff", first, model) > 0
    assert host.python(f"{PROBES}:max_abs_diff", final, first) > 0


def test_each_model_loads_with_its_tokenizer(session: Session, host: Host) -> None:
    """M_1, M_2 and the final model are adapters on the base; the final one is M_2."""
    folders = [session.out / session.names[0], session.out / session.names[1], session.out]
    for folder in folders:
        loaded = host.python(f"{PROBES}:load_ok", folder)
        assert loaded["class"].startswith("PeftModel")
        assert loaded["eos"] == "<|im_end|>"
    digests = [weights_digest(folder) for folder in folders]
    assert digests[1] == digests[2]
    assert digests[0] != digests[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for what the host prepares, so that each set is prepared once."""
    return {"dataset_prepared_path": str(tmp_path_factory.mktemp("prepared"))}


def test_the_real_executable(
    host: Host, model: Path, two_sets: list[Config], cache: dict[str, str], tmp_path: Path
) -> None:
    """`axolotl train` with nothing warm and its default launcher, accelerate."""
    config = write_config(tmp_path / "config.yaml", sdpo_config(lora_config(model, two_sets, tmp_path, **cache)))
    result = run_fresh(["train", str(config)], tmp_path, host.scratch).check()
    assert "step 2/2 step-2" in result.log_text
    assert read_report(tmp_path / "out")["finished"]


def test_torchrun_on_two_ranks(
    host: Host, model: Path, two_sets: list[Config], cache: dict[str, str], tmp_path: Path
) -> None:
    """The real torchrun, ZeRO-3 on two ranks: one bar, one plan, one report, and models that load."""
    zero3 = write_zero3(tmp_path / "zero3.json")
    made = base_config(model, two_sets, tmp_path, deepspeed=str(zero3), micro_batch_size=2, **cache)
    config = write_config(tmp_path / "config.yaml", sdpo_config(made))
    log = run_torchrun(["train", str(config)], tmp_path, host.scratch).check().log_text
    assert log.count("stepwise DPO (sDPO), 2 steps") == 1
    report = read_report(tmp_path / "out")
    assert report["finished"]
    assert [step["first_loss"] for step in report["steps"]] == pytest.approx([0.6931] * 2, abs=1e-3)
    assert host.python(f"{PROBES}:load_ok", tmp_path / "out" / "step-1")["class"] == "LlamaForCausalLM"
