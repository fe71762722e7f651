"""A user's mistake ends the run before any training, with one message that names it, and with nothing written."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import (
    Config,
    base_config,
    chat_set,
    lora_config,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.env import ROOT
from integration_tests.harness.fresh import run_fresh
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.sdpo import run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3


@dataclass(frozen=True)
class Bench:
    """The start of every case: a config that works, and data sets that do not."""

    host: Host
    model: Path
    good: list[Config]
    folder: Path

    def config(self, out: Path, **overrides: Any) -> Path:
        """A good config with overrides; all share what the host has prepared, so that only bad sets cost time."""
        plain = base_config(self.model, self.good, out, dataset_prepared_path=str(self.folder / "prepared"))
        return write_config(out / "config.yaml", sdpo_config(plain, **overrides))

    def second(self, **changes: Any) -> dict[str, Any]:
        """Overrides under which the second step reads this entry."""
        entry = {**self.good[1], **changes}
        return {"datasets": [self.good[0], {key: value for key, value in entry.items() if value is not None}]}

    def steps(self, *steps: Config) -> dict[str, Any]:
        """Overrides under which `sdpo.steps` are these, each on a good set."""
        made = [{"datasets": [entry], **step} for entry, step in zip(self.good, steps, strict=True)]
        return {"datasets": None, "sdpo": {"steps": made}}

    def file(self, name: str, text: str) -> str:
        """A file of this text."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)


@pytest.fixture(scope="module")
def bench(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The good config, with every bad file beside it."""
    folder = tmp_path_factory.mktemp("bad")
    chat_set(folder / "long.jsonl", 0, 3, long_rows=7)
    write_rows(folder / "sft.jsonl", [{"instruction": "say", "output": "yes"}] * 5)
    return Bench(host, model, two_sets, folder)


PLUGINS = ["sdpo_plugin.SDPOPlugin"]
LINES = {"key of the block at the top": 3, "numbers that train nothing": 4}
Case = tuple[Callable[[Bench], dict[str, Any]], tuple[str, ...]]
CONFIG_ERRORS: dict[str, Case] = {
    "unknown key": (lambda b: {"sdpo": {"refrence": "base"}}, ("sdpo.refrence: 'base'", "did you mean 'reference'?")),
    "unknown key in a step": (
        lambda b: b.steps({"lerning_rate": 0.5}, {}),
        ("sdpo.steps[0].lerning_rate: 0.5", "did you mean 'learning_rate'?"),
    ),
    "wrong value": (lambda b: b.steps({"num_epochs": -1}, {}), ("sdpo.steps[0].num_epochs: -1 is not valid",)),
    "not a block": (lambda b: {"sdpo": ["previous"]}, ("sdpo: is ['previous']", "a block of keys")),
    "one name twice": (
        lambda b: b.steps({"name": "orca"}, {"name": "Orca"}),
        ("sdpo.steps[1] and sdpo.steps[0]", "'Orca'"),
    ),
    "path as a name": (lambda b: b.steps({}, {"name": "a/b"}), ("sdpo.steps[1].name", "'a/b' cannot be one")),
    "two sources of steps": (
        lambda b: {"sdpo": {"steps": [{"datasets": [b.good[0]]}]}},
        ("both datasets: (2 entries) and sdpo.steps",),
    ),
    "no data": (lambda b: {"datasets": None}, ("rl: sdpo has no data",)),
    "a pool of one": (lambda b: {"datasets": b.good[:1]}, ("one entry", "d1.jsonl", "rl: dpo")),
    "key of the block at the top": (
        lambda b: {"partition": {"strategy": "natural"}, "policy_init": "base", "sdop": {"reference": "base"}},
        ("partition: {'strategy'", "did you mean sdpo.partition?", "sdpo.policy_init?", "sdop: {'reference': 'base'}"),
    ),
    "nearly sdpo": (lambda b: {"rl": "sDPO"}, ("rl: 'sDPO'", "did you mean rl: sdpo?")),
    "other name of the plugin": (
        lambda b: {"plugins": ["sdpo_plugin.host.plugin.SDPOPlugin"]},
        ("plugins: 'sdpo_plugin.host.plugin.SDPOPlugin'", "did you mean 'sdpo_plugin.SDPOPlugin'?"),
    ),
    "numbers that train nothing": (
        lambda b: {"num_epochs": 0, "learning_rate": "-1e-4", "trl": {"beta": 0}, "val_set_size": 1.0},
        ("num_epochs: 0 is", "learning_rate: '-1e-4' is", "trl.beta: 0 is", "val_set_size: 1.0 is"),
    ),
    "file's name": (
        lambda b: b.steps({}, {"name": "model.safetensors"}),
        ("sdpo.steps[1].name", "'model.safetensors'"),
    ),
    "model of the run": (lambda b: {"sdpo": {"reference": "M_1"}}, ("sdpo.reference: 'M_1'", "write './M_1'")),
    "another trainer": (
        lambda b: {"plugins": [*PLUGINS, "integration_tests.harness.other_trainer.OtherTrainerPlugin"]},
        ("a plugin brings transformers.trainer.Trainer", "harness.other_trainer.OtherTrainerPlugin'])"),
    ),
    "block without rl": (lambda b: {"rl": "dpo", "sdpo": {}}, ("sdpo: block is set, but rl is 'dpo'",)),
}
CONFLICTS: dict[str, Any] = {
    "trainer_cls": "my.Trainer",
    "precompute_ref_log_probs": False,
    "rl_adapter_ref_model": True,
    "dpo_use_liger_kernel": True,
    "reward_model": True,
    "processor_type": "AutoProcessor",
    "streaming": True,
    "fsdp_config": {"fsdp_version": 2},
    "dpo_padding_free": True,
    "padding_free": True,
    "sample_packing": True,
    "context_parallel_size": 2,
    "sequence_parallel_degree": 2,
    "reinit_weights": True,
    "fp8": True,
}
TRAINING_CONFLICTS: dict[str, Any] = {"lora_model_dir": "/models/adapter"}
DATA_ERRORS: dict[str, Case] = {
    "missing path": (lambda b: b.second(path="/nope/x.jsonl"), ("step step-2: /nope/x.jsonl:train", "path")),
    "empty file": (lambda b: b.second(path=b.file("empty.jsonl", "")), ("step step-2:", "empty.jsonl", "no rows")),
    "broken JSON": (
        lambda b: b.second(path=b.file("broken.jsonl", '{"question": "a"}\n{"chosen": \n')),
        ("step step-2:", "broken.jsonl", "JSON parse error", "row 1"),
    ),
    "rows all too long": (
        lambda b: {"datasets": [b.good[0], {**b.good[0], "path": str(b.folder / "long.jsonl")}]},
        ("step step-2:", "long.jsonl", "none of 7 rows", "sequence_len: 128"),
    ),
    "no preference data": (
        lambda b: b.second(path=str(b.folder / "sft.jsonl")),
        (
            "step step-2:",
            "sft.jsonl",
            "cannot be read as preference data: row 0 has no field 'question' (type: chatml.intel)",
        ),
    ),
    "no preference data, without a type": (
        lambda b: b.second(path=str(b.folder / "sft.jsonl"), type=None),
        ("step step-2:", "sft.jsonl", "chosen and rejected keys are required"),
    ),
    "unknown type": (lambda b: b.second(type="chatml.intell"), ("step step-2:", "type 'chatml.intell'")),
    "unknown split": (lambda b: b.second(split="trian"), ("step step-2:", 'Unknown split "trian"')),
    "wrong field": (
        lambda b: {"datasets": [{**b.good[0], "field_chosen": "chosn"}, b.good[1]]},
        ("step step-1:", "row 0 has no field 'chosn' (type: chat_template.default)"),
    ),
    "missing test set": (
        lambda b: {"val_set_size": None, "test_datasets": [{**b.good[0], "path": "/nope/t.jsonl"}]},
        ("step step-1: test_datasets: /nope/t.jsonl:train",),
    ),
}


def _spoilt(bench: Bench, number: int, row: int, field: str, **changes: Any) -> dict[str, Any]:
    """Overrides under which the second step reads a good set with one field of one row set to null."""
    rows = read_rows(Path(bench.good[number]["path"]))
    rows[row][field] = None
    entry = {**bench.good[number], **changes, "path": str(bench.folder / f"null-{field}-{number}.jsonl")}
    write_rows(Path(entry["path"]), rows)
    return {"datasets": [bench.good[0], entry]}


def _sharegpt(bench: Bench, field: str) -> dict[str, Any]:
    """The same with messages as ShareGPT has them."""
    rows = [{field: [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"}] * 3
    return bench.second(
        path=str(write_rows(bench.folder / f"{field}.jsonl", rows)), type="chat_template.default", field_messages=field
    )


# Rows that make a worker process of the host raise, and parts of the message, by cause.
ROW_ERRORS: dict[str, Case] = {
    "no preference data": (
        lambda b: b.second(path=str(b.folder / "sft.jsonl")),
        (
            "sft.jsonl:train cannot be read as preference data: row 0 has no field 'question' (type: chatml.intel). "
            "Fields found: instruction, output. Fields that chatml.intel reads: system, question, chosen, rejected. ",
        ),
    ),
    "wrong type": (
        lambda b: b.second(type="chatml.icr"),
        (
            "row 0 has no field 'input' (type: chatml.icr). Fields found: system, question, chosen, rejected. "
            "Fields that chatml.icr reads: system, input, chosen, rejected. ",
        ),
    ),
    "no answer": (
        lambda b: _spoilt(b, 0, 17, "chosen"),
        (
            "null-chosen-0.jsonl:train cannot be read as preference data: row 17 cannot be read: field 'chosen' is "
            "null (type: chat_template.default). Fields found: messages, chosen, rejected. Fields that "
            "chat_template.default reads: messages, chosen, rejected",
        ),
    ),
    "no messages": (lambda b: _spoilt(b, 0, 3, "messages"), ("row 3 cannot be read: field 'messages' is null",)),
    "no answer, written as None": (
        lambda b: _spoilt(b, 1, 5, "rejected"),
        ("row 5 would be read with the word None: field 'rejected' is null (type: chatml.intel)",),
    ),
    "no answer, without a type": (
        lambda b: _spoilt(b, 1, 0, "chosen", type={"field_prompt": "question", "chosen_format": ""}),
        ("row 0 would be read with the word None: field 'chosen' is null (a type of your own)",),
    ),
    "ShareGPT": (
        lambda b: _sharegpt(b, "conversations"),
        (
            "row 0 has no 'role' in 'conversations[0]', which holds: from, value (type: chat_template.default). ",
            "Messages of ShareGPT (from, value) need a type with formats of its own; see the table of types in "
            "example_configs/README.md",
        ),
    ),
}


@pytest.mark.parametrize("name", ROW_ERRORS)
def test_row_and_field_are_named(bench: Bench, tmp_path: Path, name: str) -> None:
    """Source, row of the file, fields found and read: also from worker processes, as the host has them by default."""
    overrides, parts = ROW_ERRORS[name]
    config = bench.config(tmp_path, **overrides(bench), dataset_num_proc=2)
    result = bench.host.train(config, env={"AXOLOTL_DATASET_NUM_PROC": None})
    said = refused(result, tmp_path / "out", "step step-2: ", *parts, "Rows of its file are counted from 0.")
    assert "RemoteTraceback" not in said
    assert len(said) < 800


@pytest.mark.parametrize("path", ["https://user:hush@127.0.0.1:1/x.jsonl", "https://127.0.0.1:1/x.jsonl?token=hush"])
@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_cannot_be_reached_is_named_without_credentials(
    bench: Bench, tmp_path: Path, path: str, offline: str
) -> None:
    """Nothing listens at that port."""
    config = bench.config(tmp_path, **bench.second(path=path))
    result = bench.host.train(config, env={"HF_HUB_OFFLINE": offline})
    said = refused(
        result,
        tmp_path / "out",
        "step step-2: https://127.0.0.1:1/x.jsonl:train cannot be read: it cannot be reached from here, or is not "
        "there: ",
        "Check the address, the network and your credentials",
    )
    assert "hush" not in said


def test_credentials_of_a_bucket_are_not_shown(bench: Bench, tmp_path: Path) -> None:
    """The library that reads buckets repeats them in its error, as the name of a bucket."""
    result = bench.host.train(bench.config(tmp_path, **bench.second(path="s3://me:hush/hush@bucket/x.jsonl")))
    said = refused(result, tmp_path / "out", "step step-2: s3://bucket/x.jsonl:train cannot be read: ")
    assert "hush" not in said
    single = bench.config(tmp_path, datasets=[{**bench.good[0], "path": "s3://me:hush@bucket/x.jsonl"}])
    said = refused(bench.host.train(single), tmp_path / "out", "one entry in datasets: (path: 's3://bucket/x.jsonl')")
    assert "hush" not in said


@pytest.mark.parametrize("name", [*CONFIG_ERRORS, *DATA_ERRORS])
def test_one_clear_message(bench: Bench, tmp_path: Path, name: str) -> None:
    """Each names the key or the step, and the value."""
    overrides, parts = (CONFIG_ERRORS | DATA_ERRORS)[name]
    result = bench.host.train(bench.config(tmp_path, **overrides(bench)))
    refused(result, tmp_path / "out", *parts, lines=LINES.get(name, 1))
    assert ("ConfigError" in result.log_text) == (name in CONFIG_ERRORS)
    assert ("DataError" in result.log_text) == (name in DATA_ERRORS)


@pytest.mark.parametrize("name", ["sdpo_plugin.SdpoPlugin", "sdpo_plugin.plugin.SDPOPlugin"])
def test_plugin_by_another_name(bench: Bench, tmp_path: Path, name: str) -> None:
    """The host would log that it cannot be imported, and train without it."""
    result = bench.host.train(bench.config(tmp_path, plugins=[name]))
    missing = name.removesuffix(".SDPOPlugin").rpartition(".")[2]
    (said,) = messages(result)  # Axolotl 0.21 logs a traceback of its own before it
    assert said.endswith(f"{missing}'; did you mean plugins: [sdpo_plugin.SDPOPlugin]?")
    assert (result.returncode, (tmp_path / "out").exists()) == (1, False)


@pytest.mark.parametrize("key", [*CONFLICTS, *TRAINING_CONFLICTS])
def test_conflicting_host_key(bench: Bench, tmp_path: Path, key: str) -> None:
    """The key, the value seen, and what to do."""
    value = (CONFLICTS | TRAINING_CONFLICTS)[key]
    result = bench.host.train(bench.config(tmp_path, **{key: value}))
    refused(result, tmp_path / "out", f"rl: sdpo conflicts with {key}: {value!r}: ")


def test_all_conflicts_at_once(bench: Bench, tmp_path: Path) -> None:
    """A user sees every conflict in one go, a line each."""
    result = bench.host.train(bench.config(tmp_path, **CONFLICTS, trl={"sync_ref_model": True}))
    refused(result, tmp_path / "out", *CONFLICTS, "trl.sync_ref_model", lines=len(CONFLICTS) + 1)


def _digests(folder: Path) -> dict[str, str]:
    """Content and time of every file, the host's own log among them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        f"{p.relative_to(folder)} {p.stat().st_mtime_ns}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_finished_steps_are_not_overwritten(bench: Bench, tmp_path: Path) -> None:
    """Training twice into one directory leaves the first result as it is, byte for byte."""
    lora = lora_config(bench.model, bench.good, tmp_path, dataset_prepared_path=str(bench.folder / "prepared"))
    out = run_sdpo(bench.host, lora)
    before = _digests(out)
    assert any("adapter_model.safetensors" in name for name in before)
    result = bench.host.train(tmp_path / "config.yaml")
    refused(result, tmp_path / "nothing", "output_dir:", str(out), "step-1, step-2")
    assert _digests(out) == before


def test_unsupported_host(bench: Bench, tmp_path: Path) -> None:
    """A host of another version is refused by name before it reads anything, and never trains without the plugin."""
    fake = tmp_path / "site" / "axolotl-0.18.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: axolotl\nVersion: 0.18.0\n", encoding="utf-8")
    result = run_fresh(
        ["train", str(bench.config(tmp_path)), "--launcher", "python"],
        tmp_path,
        bench.host.scratch,
        env={"PYTHONPATH": f"{fake.parent}:{ROOT}"},
    )
    refused(result, tmp_path / "out", "axolotl 0.18.0 is installed", "pip install 'axolotl")
    assert "UnsupportedHostError" in result.log_text


@pytest.mark.parametrize("what", ["config", "data", "gather", "disk", "optimizer", "scheduler"])
def test_two_ranks_end_together_and_say_it_once(bench: Bench, tmp_path: Path, what: str) -> None:
    """No rank waits for another, and one of them speaks."""
    overrides, parts = {
        "config": ({"sdpo": {"refrence": "base"}}, ("sdpo.refrence: 'base'",)),
        "data": (bench.second(path="/nope/x.jsonl"), ("step step-2: /nope/x.jsonl:train",)),
        "optimizer": ({}, ("section 'optimizer' (type 'AdamW')", "remove it")),
        "scheduler": ({}, ("section 'scheduler' (type 'WarmupLR')", "remove it")),
        "disk": ({}, ("offload_param has device: 'nvme'", "set device: cpu")),
        "gather": ({}, ("stage3_gather_16bit_weights_on_model_save: False", "so M_t could not be written")),
    }[what]
    types = {"optimizer": "AdamW", "scheduler": "WarmupLR"}
    own = {what: {"type": types[what], "params": {}}} if what in types else {}
    gather = {"stage3_gather_16bit_weights_on_model_save": what != "gather"}
    offload = {"offload_param": {"device": "nvme", "nvme_path": str(tmp_path)} if what == "disk" else None}
    zero3 = write_zero3(tmp_path / "zero3.json", own, **gather, **offload)
    config = bench.config(tmp_path, deepspeed=str(zero3), micro_batch_size=2, **overrides)
    running = bench.host.start(["train", str(config), "--launcher", "python"], tmp_path, ranks=2)
    result = running.wait(240)
    refused(result, tmp_path / "out", *parts)
    assert list(running.codes().values()) == [1, -signal.SIGKILL]  # rank 1 waits for its launcher, here these tests
    assert messages(result)[0] in result.log(0)


def test_a_rank_that_no_launcher_ends_says_the_same(bench: Bench, tmp_path: Path) -> None:
    """After a while, by itself."""
    zero3 = write_zero3(tmp_path / "zero3.json")
    config = bench.config(tmp_path, deepspeed=str(zero3), micro_batch_size=2, sdpo={"refrence": "base"})
    running = bench.host.start(["train", str(config), "--launcher", "python"], tmp_path, ranks=2)
    result = running.wait(240, grace=120)
    assert list(running.codes().values()) == [1, 1]
    first, second = messages(result)
    assert first == second
    assert "ConfigError on rank 1" in result.log(1)


def test_columns_of_gigabytes_are_looked_through(host: Host) -> None:
    """2,560 rows of a megabyte each, then some with nulls; of each field the first one."""
    found = host.python("integration_tests.harness.chunks:nulls_of_gigabytes")
    assert found == [[2561], [2560, 2561, 2562], [], []]
