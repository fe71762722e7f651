"""The user's own code around a step, on the real host: D_2 and D_3 are made of M_1 and M_2 by the shipped example.

What a hook makes is then a data set like any other: the chain is that of an ordinary run over the same files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import (
    Config,
    base_config,
    chat_set,
    lora_config,
    pairs,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.deaths import PLUGINS, Life, live, outcome, read_plan, train
from integration_tests.harness.fsdp2 import fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config
from integration_tests.harness.step_hooks import calls
from integration_tests.harness.zero3 import write_zero3

HOOKS = {
    "before_step": "integration_tests.harness.step_hooks:before",
    "after_step": "integration_tests.harness.step_hooks:after",
}
MADE = {"from_hook": {"type": "chat_template.argilla_chat"}}
ENTRY = {"ds_type": "json", "split": "train", "type": "chat_template.argilla_chat"}
TRAIN = {"num_epochs": 2, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data; the example finds its prompts from where a run is started."""
    return tmp_path_factory.mktemp("hooks")


def give_prompts(folder: Path) -> None:
    """16 prompts where the example looks for them."""
    rows = [
        {side: [_message("user", row["question"]), _message("assistant", row[side])] for side in ("chosen", "rejected")}
        for row in pairs(16, 5)
    ]
    source = folder / "allenai" / "ultrafeedback_binarized_cleaned"
    write_rows(source / "data" / "train_prefs-00000-of-00001.jsonl", rows)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def first(folder: Path) -> Config:
    """D_1: 12 rows of a file."""
    return chat_set(folder / "d1.jsonl", 12, 1)


@pytest.fixture(scope="module")
def heldout(folder: Path) -> Config:
    """Held out, for every M_t."""
    return chat_set(folder / "test.jsonl", 8, 9)


def hooked(config: Config, first: Config, *steps: Config, **block: Any) -> dict[str, Any]:
    """The changes by which D_1 is a file and the other steps are these."""
    return {"datasets": None, "sdpo": {**HOOKS, **block, "steps": [{"datasets": [first]}, *steps]}}


@pytest.fixture(scope="module")
def life(host: Host, model: Path, folder: Path, first: Config, heldout: Config) -> Life:
    """Three steps; the third sets a learning rate, and its warm-up as a share of updates that nobody knows yet."""
    out = folder / "whole"
    give_prompts(out)
    config = base_config(model, [first], out, **TRAIN, test_datasets=[heldout], warmup_steps=None, warmup_ratio=0.3)
    third = {**MADE, "learning_rate": 5.0e-4}
    return live(host, config, **hooked(config, first, MADE, third))


def kept(out: Path, name: str) -> Path:
    """The rows that a hook has made for a step."""
    return out / "sdpo" / "data" / f"{name}.jsonl"


def test_chain_equals_an_ordinary_run_over_the_rows_that_were_made(
    host: Host, life: Life, first: Config, tmp_path: Path
) -> None:
    """To the bit: rows, updates, schedule, held-out rows, reference are those of data sets that were always there."""
    sets = [first, *({"path": str(kept(life.out, name)), **ENTRY} for name in ("step-2", "step-3"))]
    files = [
        first,
        *(
            {**entry, "path": str(shutil.copy(entry["path"], tmp_path / f"d{number}.jsonl"))}
            for number, entry in enumerate(sets[1:], 2)
        ),
    ]
    block = {"steps": [{"datasets": [entry]} for entry in files]}
    block["steps"][2] |= {"learning_rate": 5.0e-4}  # type: ignore[dict-item]
    config = {**life.config, "sdpo": block, "output_dir": str(tmp_path / "out"), "plugins": PLUGINS[:1]}
    ordinary = run_sdpo(host, config)
    for step in ("step-1", "step-2", "step-3", ""):
        assert apart(life.out / step, ordinary / step) == 0.0
    assert apart(life.out / "step-1", life.out / "step-2") > 1e-4
    assert apart(life.out / "step-2", life.out / "step-3") > 1e-4
    plans = [read_plan(out)["steps"] for out in (life.out, ordinary)]
    assert [step.pop("sources") for step in plans[0]] == [[f"{first['path']}:train"], ["before_step"], ["before_step"]]
    for step in plans[1]:
        del step["sources"]
    assert plans[0] == plans[1]
    # 12 prompts are drawn, of which a few get an empty answer; two epochs in batches of four
    assert [step["num_optimizer_steps"] for step in plans[0]] == [-(-step["num_rows"] * 2 // 4) for step in plans[0]]


def test_rows_are_the_models_own(life: Life) -> None:
    """The rejected answers of D_2 and D_3 are other ones, for M_1 and M_2 are other models, on other prompts."""
    made = [read_rows(kept(life.out, name)) for name in ("step-2", "step-3")]
    for rows in made:
        assert 6 <= len(rows) <= 12
        assert all(row["rejected"][-1]["content"] != row["chosen"][-1]["content"] for row in rows)
    assert [row["chosen"] for row in made[0]] != [row["chosen"] for row in made[1]]


def test_what_the_hooks_are_given(life: Life, model: Path) -> None:
    """In the order of the steps, with the model that stands, and with the report as it has come so far."""
    given = calls(life.out)
    assert [(call["hook"], call["step"]["index"], call["model_dir"]) for call in given] == [
        ("before_step", 1, str(model)),
        ("after_step", 1, str(life.out / "step-1")),
        ("before_step", 2, str(life.out / "step-1")),
        ("after_step", 2, str(life.out / "step-2")),
        ("before_step", 3, str(life.out / "step-2")),
        ("after_step", 3, str(life.out / "step-3")),
    ]
    assert {(call["base_model"], call["seed"], call["rank"]) for call in given} == {(str(model), 42, "0")}
    assert [call["step"]["is_awaited"] for call in given] == [False, False, True, False, True, False]
    paths = [None, None, ".step-2.jsonl.tmp", None, ".step-3.jsonl.tmp", None]
    assert [call["data_path"] and Path(call["data_path"]).name for call in given] == paths
    assert [call["states"] for call in given][:3] == [
        ["planned", "planned", "planned"],
        ["exported", "planned", "planned"],
        ["exported", "planned", "planned"],
    ]
    assert given[1]["record"]["first_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert given[1]["record"]["called"] == ["before_step"]
    steps = read_report(life.out)["steps"]
    assert [step["first_loss"] for step in steps] == pytest.approx([0.6931] * 3, abs=1e-4)


def test_preprocess_says_that_rows_are_not_made_yet(host: Host, life: Life) -> None:
    result = host.run(["preprocess", str(life.out.parent / "config.yaml")], life.out.parent).check()
    lines = [line.split() for line in result.log_text.splitlines() if "before_step" in line and "not made yet" in line]
    assert [line[line.index("before_step") - 1] for line in lines] == ["step-2", "step-3"]


def test_evaluate_needs_no_rows_that_a_hook_makes(host: Host, life: Life) -> None:
    """It is about held-out sets, which are of files."""
    result = host.run(
        ["evaluate", str(life.out.parent / "config.yaml"), "--launcher", "python"], life.out.parent
    ).check()
    assert "M_3 on held-out rows" in result.log_text


@pytest.mark.parametrize(
    ("event", "times"),
    [
        pytest.param("open sdpo/data/.step-2.jsonl.tmp", 2, id="within-the-hook"),
        pytest.param("os.rename sdpo/data/.step-2.jsonl.tmp", 2, id="before-its-rows-are-kept"),
        pytest.param("step-2/checkpoint-2/.sdpo_seal", 1, id="in-training"),
    ],
)
def test_killed_around_the_hook_ends_with_the_same_bits(life: Life, tmp_path: Path, event: str, times: int) -> None:
    """Rows that no ledger vouches for are made again; those that are kept are read."""
    at = next(number for number, what in enumerate(life.events, 1) if event in what)
    at += 2 if times == 1 else 0
    give_prompts(tmp_path)
    out = life.resume(life.die(tmp_path, at))
    assert outcome(life.host, out) == outcome(life.host, life.out)
    for name in ("step-2", "step-3"):
        assert kept(out, name).read_bytes() == kept(life.out, name).read_bytes()
    before = [call["step"]["index"] for call in calls(out) if call["hook"] == "before_step"]
    assert before == [1, *[2] * times, 3]


def ended(result: Result, *parts: str) -> str:
    """The run ended with one message of ours that has these parts, on rank 0."""
    said = "\n".join(messages(result))
    assert (result.returncode, result.timed_out) == (1, False), result.log_text[-3000:]
    for part in parts:
        assert part in said, f"{part!r} is not in {said!r}"
    return said


def test_what_goes_wrong_is_told_and_mended(life: Life, tmp_path: Path) -> None:
    """Rows that are no pairs, a hook that raises, one that exits, rows that were changed; then the run ends well."""
    give_prompts(tmp_path)
    out = tmp_path / "out"
    config = write_config(tmp_path / "config.yaml", {**life.config, "output_dir": str(out)})

    def fail(fault: str, *parts: str) -> str:
        result = life.host.train(config, env={"SDPO_TEST_HOOK": fault})
        return ended(result, *parts)

    again = "run the same command with auto_resume_from_checkpoints: true, which calls it again."
    path = kept(out, "step-2")
    said = fail("spoil:before_step:2", f"step step-2: {path}:train cannot be read as preference data: row 0")
    name = "integration_tests.harness.step_hooks"
    assert f"sdpo.before_step: {name}:before has made these rows for step step-2: {path}. Mend it, and {again}" in said
    said = fail(
        "raise:after_step:2",
        f"sdpo.after_step: {name}:after failed after step step-2 (2 of 3): KeyError: 'a fault of the test'",
        f"the model is {out}/step-2. Mend the hook, and {again}",
    )
    assert 'raise KeyError("a fault of the test")' in said
    fail("exit:after_step:2", "failed after step step-2 (2 of 3): SystemExit: 0")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"the", b"teh", 1))
    changed = f"{path} does not hold the rows that sdpo.before_step has made for step step-2: it has been changed"
    fail("", changed)
    path.write_bytes(whole)
    assert outcome(life.host, life.resume(config)) == outcome(life.host, life.out)
    assert [(call["hook"], call["step"]["index"]) for call in calls(out)] == [
        ("before_step", 1),
        ("after_step", 1),
        *[("before_step", 2)] * 2,
        *[("after_step", 2)] * 3,
        ("before_step", 3),
        ("after_step", 3),
    ]


def test_rows_that_have_another_type_by_now_are_refused(life: Life, tmp_path: Path) -> None:
    """Kept rows are as much a part of the run as those of files."""
    dead = Path(shutil.copytree(life.out, tmp_path / "out"))
    steps = [dict(step) for step in life.config["sdpo"]["steps"]]
    steps[2] = {**steps[2], "from_hook": {"type": "llama3.argilla_chat"}}
    block = {**life.config["sdpo"], "steps": steps}
    config = write_config(tmp_path / "config.yaml", {**life.config, "output_dir": str(dead), "sdpo": block})
    said = ended(train(life.host, config), "the run in output_dir cannot be resumed: since it began this has changed:")
    assert "rows: source 3 (before_step) is " in said
    assert "source 2" not in said


@pytest.mark.parametrize(
    ("changes", "block", "why"),
    [
        pytest.param(
            {},
            {"after_step": "integration_tests.harness.step_hooks:none"},
            "sdpo.after_step: 'integration_tests.harness.step_hooks:none' takes (), and it is called with one argument",
            id="no-hook",
        ),
        pytest.param(
            {"val_set_size": 0.1},
            {},
            "step step-2: val_set_size: 0.1 of the config would hold out rows that sdpo.before_step makes",
            id="held-out",
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    host: Host, model: Path, first: Config, tmp_path: Path, changes: Config, block: Config, why: str
) -> None:
    config = base_config(model, [first], tmp_path, **changes)
    made = sdpo_config(config, **hooked(config, first, MADE, **block))
    ended(host.train(write_config(tmp_path / "config.yaml", made)), why)
    assert not (tmp_path / "out" / "sdpo").exists()


SGD = {"optimizer": "sgd", "learning_rate": 0.2, "num_epochs": 2}


@pytest.fixture(scope="module")
def alone(host: Host, model: Path, first: Config, folder: Path) -> Path:
    """Two steps in one process."""
    out = folder / "alone"
    give_prompts(out)
    config = base_config(model, [first], out, **SGD)
    return run_sdpo(host, sdpo_config(config, **hooked(config, first, MADE)))


@pytest.mark.parametrize("engine", ["ddp", "zero-3", "fsdp2"])
def test_two_ranks_make_the_rows_of_one(
    host: Host, model: Path, first: Config, alone: Path, tmp_path: Path, engine: str
) -> None:
    """Rank 0 calls the hook, which loads a whole model also where ZeRO-3 would share it out; both read its rows."""
    give_prompts(tmp_path)
    zero3 = {"deepspeed": str(write_zero3(tmp_path / "zero3.json"))}
    shared = {"ddp": {}, "zero-3": zero3, "fsdp2": fsdp2()}[engine]
    config = base_config(model, [first], tmp_path, **SGD, **shared, micro_batch_size=2)
    out = run_sdpo(host, sdpo_config(config, **hooked(config, first, MADE)), ranks=2)
    assert kept(out, "step-2").read_bytes() == kept(alone, "step-2").read_bytes()
    for step in ("step-1", "step-2", ""):
        # Measured: 1.2e-7 under each engine, where the steps moved weights by more than 1e-3.
        assert apart(out / step, alone / step) <= 1e-6
    assert apart(out / "step-1", out) > 1e-3
    assert [call["rank"] for call in calls(out)] == ["0"] * 4


def test_error_of_a_hook_ends_every_rank(host: Host, model: Path, first: Config, tmp_path: Path) -> None:
    config = base_config(model, [first], tmp_path, **SGD, micro_batch_size=2)
    made = write_config(tmp_path / "config.yaml", sdpo_config(config, **hooked(config, first, MADE)))
    result = host.train(made, ranks=2, env={"SDPO_TEST_HOOK": "raise:after_step:1"})
    ended(result, "sdpo.after_step: integration_tests.harness.step_hooks:after failed after step step-1 (1 of 2)")


def test_adapters(host: Host, model: Path, first: Config, tmp_path: Path) -> None:
    """With LoRA a hook is given adapters, which load with the base model that they name; M_0's is one, too."""
    give_prompts(tmp_path)
    config = lora_config(model, [first], tmp_path)
    out = run_sdpo(host, sdpo_config(config, **hooked(config, first, MADE)))
    assert [call["model_dir"] for call in calls(out)] == [
        str(out / place) for place in ("sdpo/start", "step-1", "step-1", "step-2")
    ]
    assert (out / "sdpo" / "start" / "adapter_config.json").exists()
    assert json.loads((out / "sdpo" / "ledger.json").read_text(encoding="utf-8"))["finished"]
    assert len(read_rows(kept(out, "step-2"))) == read_plan(out)["steps"][1]["num_rows"]
