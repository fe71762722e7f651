"""`sdpo.packed`: pairs as one row without padding give the log-probs, gradients and weights that padded rows give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from integration_tests.harness.compare import apart, compare
from integration_tests.harness.data import Config, base_config, even_set, read_rows, write_config, write_rows
from integration_tests.harness.deaths import live
from integration_tests.harness.env import ROOT
from integration_tests.harness.expected_log_probs import off, read_table
from integration_tests.harness.fsdp2 import fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.models import make_model
from integration_tests.harness.packed import MODELS, POSITIONS
from integration_tests.harness.sdpo import read_report, sdpo_config
from integration_tests.harness.stored_weights import weights_digest
from integration_tests.harness.zero3 import write_zero3

COMPARE = "integration_tests.harness.packed:compare"
PADDED = {"bloom", "falcon", "gpt_neo", "lfm2", "mamba", "mpt"}  # they do not take packed rows
EXPERTS = ("gpt_oss", "mixtral", "qwen3_moe")
PLUGINS = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin"]
EAGER = {"gpt_oss"}  # has no scaled dot-product attention
SGD = {"optimizer": "sgd", "learning_rate": 1.0e-2, "num_epochs": 2}


def test_a_packed_batch(host: Host) -> None:
    """Two pairs, the second cut at 5 tokens, worked out by hand."""
    pairs = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "ref_chosen_logps": -1.5},
        {"prompt_ids": [6, 7, 8], "chosen_ids": [9], "rejected_ids": [10, 11, 12], "ref_chosen_logps": -2.5},
    ]
    assert host.python("integration_tests.harness.packed:collate", pairs, 5) == {
        "packed_ids": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
        "packed_positions": [[0, 1, 2, 3, 2, 0, 1, 2, 3, 3, 4]],
        # Before a token of: chosen 1, chosen 2, rejected 1, rejected 2; then the tokens, and their cells of (4, 2).
        "packed_places": [1, 2, 7, 1, 7, 9],
        "packed_labels": [3, 4, 9, 5, 10, 11],
        "packed_cells": [0, 1, 2, 4, 6, 7],
        "input_ids": [[0, 3, 4], [0, 9, 0], [0, 5, 0], [0, 10, 11]],
        "completion_mask": [[0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 1]],
        "attention_mask": [[2, 1, 1], [3, 1, 0], [2, 1, 0], [3, 1, 1]],  # 16 tokens, as in TRL's four rows
        "ref_chosen_logps": [-1.5, -2.5],
        "longest": 5,
        "starts": [0, 5],
    }


@pytest.mark.parametrize("kind", sorted(set(MODELS) - PADDED))
def test_log_probs_and_gradients_are_those_of_padded_rows(host: Host, kind: str) -> None:
    """One-token answers and prompts, equal answers, rows that are cut, windows shorter than a row; and no text sees
    another one: with another answer beside it a log-prob keeps its bits."""
    found = host.python(COMPARE, kind, "eager" if kind in EAGER else "sdpa")
    assert found["takes"]
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["weights"] <= 1e-5 < 1e-2 < found["moved"]
    assert found["alone"] <= 1e-4
    assert found["leaks"] == 0.0


@pytest.mark.parametrize("positions", POSITIONS)
def test_scaled_positions(host: Host, positions: str) -> None:
    """Those that look at the longest row of a batch find the same one; rows here are longer than what they scale."""
    found = host.python(COMPARE, f"llama {positions}")
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["alone"] <= 1e-4
    assert found["leaks"] == 0.0


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2", "granite", "gemma3_text"])
def test_with_a_kernel_that_takes_all_pairs_at_once(host: Host, kind: str) -> None:
    """A GPU's, in whose place one in plain PyTorch stands: a call for each layer, grouped heads, windows, a scale of
    the model's own."""
    found = host.python(COMPARE, kind, "sdpa", "kernel")
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["weights"] <= 1e-5
    assert found["leaks"] == 0.0
    assert found["calls"] > 0


KERNEL: dict[str, tuple[bool, dict[str, Any]]] = {
    "half precision": (True, {}),
    "float16": (True, {"dtypes": ["float16"] * 3}),
    "a window and a scale": (True, {"arguments": {"sliding_window": 7, "scaling": 0.5, "softcap": None}}),
    "the largest head": (True, {"sizes": [256] * 3}),
    "on a CPU": (False, {"is_cuda": False}),
    "float32": (False, {"dtypes": ["float32"] * 3}),
    "keys in float32": (False, {"dtypes": ["bfloat16", "float32", "bfloat16"]}),
    "a larger head": (False, {"sizes": [264] * 3}),
    "a head that some GPUs cannot train": (False, {"sizes": [200] * 3}),
    "a head that 8 does not divide": (False, {"sizes": [60] * 3}),
    "values of another size": (False, {"sizes": [64, 64, 128]}),
    "capped scores": (False, {"arguments": {"softcap": 50.0}}),
    "sinks": (False, {"arguments": {"s_aux": 1.0}}),
    "biases of positions": (False, {"arguments": {"position_bias": 1.0}}),
    "dropout": (False, {"arguments": {"dropout": 0.1}}),
    "an older GPU": (False, {"capability": [7, 5]}),
}


def test_which_states_a_kernel_takes(host: Host) -> None:
    """As docs/packed.md has it, with a stand-in for the GPU."""
    found = host.python(
        "integration_tests.harness.packed:takes_kernel", {name: case for name, (_, case) in KERNEL.items()}
    )
    assert found == {name: takes for name, (takes, _) in KERNEL.items()}


def test_under_autocast_a_kernel_is_asked_for_with_states_of_one_dtype(host: Host) -> None:
    """Qwen 3 norms its queries and keys in float32."""
    assert set(host.python("integration_tests.harness.packed:states_under_autocast", "qwen3")) == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 100}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_what_acts_on_scores_is_there_to_be_seen(host: Host, kind: str, fields: dict[str, Any]) -> None:
    """The log-probs that are compared here are other ones without it, by far more than they may differ."""
    moved = host.python("integration_tests.harness.packed:with_another", kind, fields)
    assert min(moved.values()) >= 1e-2, moved


def test_the_docs_say_which() -> None:
    """The table of models is what is tested here."""
    text = (ROOT / "docs" / "packed.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)` \| (packed|padded) \|", text, re.MULTILINE))
    assert said == {kind: "padded" if kind in PADDED else "packed" for kind in MODELS}
    for reason in ("truncation_mode", "disable_dropout", "torch_compile", "compute_metrics", "several GPUs"):
        assert reason in text


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_with_the_models_own_attention_function(host: Host, kind: str) -> None:
    """`attn_implementation: eager`, which is called with the model's own scaling, soft-capping and masks."""
    found = host.python(COMPARE, kind, "eager")
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["leaks"] == 0.0


def test_with_the_hosts_sdpa_for_many_texts(host: Host) -> None:
    """`sdpa_varlen: true`, which finds texts by positions that begin anew: it is given one text at a time."""
    found = host.python(COMPARE, "llama", "sdpa", "sdpa_varlen")
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["leaks"] == 0.0


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn3"])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss"])
def test_with_flash_attention(host: Host, kind: str, name: str) -> None:
    """Padded rows go through it, packed ones through an attention of no such name; its caps and sinks are computed, and
    it is the model's again at the end."""
    found = host.python(COMPARE, kind, name)
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["leaks"] == 0.0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_under_autocast_packed_rows_are_no_noisier(host: Host, kind: str) -> None:
    """bfloat16, beside float32: both forward passes round, neither by more than twice the other; so do gradients."""
    found = host.python("integration_tests.harness.packed:half_precision", kind)
    for packed, padded in zip(found["packed"], found["padded"], strict=True):
        assert 0.0 < packed <= 2 * padded
        assert padded <= 2 * packed


def test_logits_in_half_precision_are_summed_in_float32(host: Host) -> None:
    """As DeepSpeed and FSDP2 give them: both to rounding in float32."""
    off = host.python("integration_tests.harness.packed:in_half_precision", "llama")
    assert off["padded"] <= 1e-4
    assert off["packed"] <= 1e-4


@pytest.mark.parametrize("mode", ["checkpointing", "reentrant checkpointing"])
def test_with_gradient_checkpointing(host: Host, mode: str) -> None:
    """The layers are computed again in the backward pass, with the same layout."""
    found = host.python(COMPARE, "mistral", "sdpa", mode)
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["weights"] <= 1e-5


OBSTACLES = {
    "dropout": "dropout is on (disable_dropout: false), and the two answers would share that of their prompt",
    "truncation": "truncation_mode is 'keep_end', which gives the two answers different prompts",
    "experts": "the auxiliary loss of the experts of LlamaForCausalLM is not transformers' own",
    "prompt learning": "the adapter puts tokens of its own before each row",
    "compile": "torch_compile would compile anew for every batch",
    "several GPUs": "several GPUs in one process would each be given a piece of the row (start one process a GPU)",
    "metrics": "compute_metrics is given logits as padded rows have them",
    "collator": "DefaultDataCollator, a collator that is not TRL's, makes the batches",
    "nothing": None,
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_is_known_without_trying(host: Host, what: str) -> None:
    """Settings under which packed rows would be others, each on a Llama that takes them."""
    assert host.python("integration_tests.harness.obstacles:obstacle", what) == OBSTACLES[what]


@pytest.mark.parametrize("kind", sorted(PADDED))
def test_models_that_take_no_packed_rows_are_known(host: Host, kind: str) -> None:
    """Most have an attention of their own, or none; MPT's positions are distances that it works out by itself."""
    found = host.python(COMPARE, kind, "eager")
    assert not found["takes"] or found["log-probs"] > 0.1, "it could be taken off the list"


def config(model: Path, sets: list[Config], folder: Path, packed: bool | str, **more: Any) -> Config:
    """An `rl: sdpo` config in a folder of its own."""
    return sdpo_config(base_config(model, sets, folder, **SGD | more), sdpo={"packed": packed})


MODES: dict[str, dict[str, Any]] = {
    "accumulation": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "lora": {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True},
    "dropout in an adapter": {
        **{"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True},
        "lora_dropout": 0.1,  # which TRL switches off
    },
    "dora": {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "peft_use_dora": True},
    "evaluations": {"val_set_size": 0.25, "eval_steps": 2, "eval_strategy": "steps"},
    "another loss": {"dpo_loss_type": ["ipo", "sft"], "dpo_loss_weights": [1.0, 0.1]},
}


@pytest.mark.parametrize("mode", MODES)
def test_runs_end_with_the_weights_of_padded_rows(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, mode: str
) -> None:
    """Whole runs by the command line; the reports agree too."""
    kinds: dict[str, bool | str] = {"packed": "auto", "padded": False}
    outs = {}
    for name, packed in kinds.items():
        made = config(model, two_sets, tmp_path / name, packed, **MODES[mode])
        result = host.train(write_config(tmp_path / f"{name}.yaml", made)).check()
        assert f"forward pass: {name} rows" in result.log_text or name == "padded"
        outs[name] = Path(made["output_dir"])
        saved = list(outs[name].rglob("config.json"))
        assert saved or "adapter" in made
        assert not any("sdpo_packed" in path.read_text(encoding="utf-8") for path in saved)
    for step in ("step-1", "step-2", ""):
        assert apart(outs["packed"] / step, outs["padded"] / step) <= 1e-6
    assert apart(outs["packed"] / "step-1", outs["packed"]) >= 1e-3
    reports = [read_report(out) for out in outs.values()]
    for one, other in zip(reports[0]["steps"], reports[1]["steps"], strict=True):
        assert one["first_loss"] == pytest.approx(other["first_loss"], abs=1e-5)
        assert one["gamma_ref"]["mean"] == pytest.approx(other["gamma_ref"]["mean"], abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        *(("mistral", ""), ("gemma2", ""), ("gpt2", "")),
        *(("llama", "checkpointing"), ("llama", "reentrant checkpointing")),
    ],
)
def test_a_packed_run_is_the_hosts_own_chain(
    host: Host, two_sets: list[Config], tmp_path: Path, architecture: str, mode: str
) -> None:
    """A run of `rl: dpo` a step, each from the model before, with unmodified rows: the same M_1 and M_2."""
    base = make_model(host, tmp_path / "base", architecture)
    made = base_config(base, two_sets, tmp_path / "run", **SGD | MODES.get(mode, {})) | {"sdpo": {"packed": True}}
    run = compare(host, made, two_sets)
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
        assert apart(mine, base) >= 1e-3


def test_bfloat16_autocast(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Whole runs: packed and padded, both steps begin at ln 2, and end as near each other as that precision allows."""
    ends = {}
    for packed in (True, False):
        made = config(model, two_sets, tmp_path / str(packed), packed, learning_rate=1.0e-1) | {"plugins": PLUGINS}
        path = write_config(tmp_path / f"{packed}.yaml", made)
        host.train(path, env={"SDPO_TEST_FAULT": "bf16:"}).check()
        ends[packed] = Path(made["output_dir"])
        steps = read_report(ends[packed])["steps"]
        assert [step["first_loss"] for step in steps] == pytest.approx([0.6931, 0.6931], abs=0.05)
    moved = apart(ends[True] / "step-1", ends[True])
    off = apart(ends[True], ends[False])
    assert 1e-5 < off <= 0.5 * moved, (off, moved)  # in float32 it is 1e-6 at most


@pytest.mark.parametrize("engine", ["zero3", "ddp"])
def test_on_two_ranks(host: Host, model: Path, two_sets: list[Config], tmp_path: Path, engine: str) -> None:
    """Sharded weights are gathered for the packed row, and a rank without rows takes part: 18 rows of one length are
    9 batches."""
    shared: dict[str, Any] = {"micro_batch_size": 2}
    if engine == "zero3":
        shared["deepspeed"] = str(write_zero3(tmp_path / "zero3.json"))
    outs, sets = [], [even_set(tmp_path / "even.jsonl", 18, 3), two_sets[1]]
    for packed in (True, False):
        made = config(model, sets, tmp_path / str(packed), packed, **shared)
        host.train(write_config(tmp_path / f"{packed}.yaml", made), ranks=2).check()
        outs.append(Path(made["output_dir"]))
    assert apart(*outs) <= 1e-6
    assert apart(outs[0] / "step-1", outs[0]) >= 1e-3


def test_auto_pads_by_name(host: Host, two_sets: list[Config], tmp_path: Path) -> None:
    """BLOOM takes no attention by name: `auto` says so in one line, `true` refuses."""
    bloom = Path(make_model(host, tmp_path / "bloom", "bloom"))
    made = config(bloom, two_sets, tmp_path / "auto", "auto", max_steps=1)
    log = host.train(write_config(tmp_path / "auto.yaml", made)).check().log_text
    assert "forward pass: padded rows, because BloomForCausalLM " in log
    made = config(bloom, two_sets, tmp_path / "true", True, max_steps=1)
    result = host.train(write_config(tmp_path / "true.yaml", made))
    refused(result, Path(made["output_dir"]), "sdpo.packed: true, but BloomForCausalLM ", "set packed: auto")


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_loss_that_balances_experts(host: Host, kind: str) -> None:
    """TRL adds it by default: a prompt counts once for each answer, in its value and in what is learnt of it."""
    found = host.python("integration_tests.harness.packed:balance", kind)
    assert found["loss"] <= 1e-6
    assert found["gradients"] <= 1e-6
    assert found["were prompts counted once"] >= 1e-4
    assert found["restored"]


def test_a_run_with_experts(host: Host, two_sets: list[Config], tmp_path: Path) -> None:
    """By the command line, with the loss that balances them, and without the noise of their router."""
    made = make_model(host, tmp_path / "mixtral", "mixtral", num_local_experts=4, router_jitter_noise=0.3)
    mixtral, outs = Path(made), []
    for packed in (True, False):
        made = config(mixtral, two_sets, tmp_path / str(packed), packed, logging_steps=1)
        host.train(write_config(tmp_path / f"{packed}.yaml", made)).check()
        outs.append(Path(made["output_dir"]))
    assert apart(*outs) <= 1e-6
    assert apart(outs[0] / "step-1", outs[0]) >= 1e-3
    logs = [json.loads((out / "sdpo" / "history" / "step-1.json").read_text(encoding="utf-8")) for out in outs]
    losses = [[point["aux_loss"] for point in log["entries"] if "aux_loss" in point] for log in logs]
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_row_in_tiles(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """The host's MLP in tiles of tokens: a packed row has the weights of a run without; padded ones are refused."""
    tiles = {"tiled_mlp": True, "tiled_mlp_num_shards": 3}
    outs = []
    for name, keys in (("tiles", tiles), ("whole", {})):
        made = config(model, two_sets, tmp_path / name, True, **keys)
        host.train(write_config(tmp_path / f"{name}.yaml", made)).check()
        outs.append(Path(made["output_dir"]))
    assert apart(*outs) <= 1e-6
    assert apart(outs[0] / "step-1", outs[0]) >= 1e-3
    made = config(model, two_sets, tmp_path / "padded", "auto", **tiles)
    result = host.train(write_config(tmp_path / "padded.yaml", made))
    refused(result, Path(made["output_dir"]), "tiled_mlp_num_shards: 3 and sdpo.packed: auto would train with wrong")
    off = host.python("integration_tests.harness.packed:tiles")
    assert off["one row"] <= 1e-5
    assert off["two rows"] >= 1e-2  # where it is 0, the host's tiles are right, and need not be refused


def test_a_reference_that_takes_no_packed_rows_has_padded_ones(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """The policy keeps its packed rows beside it; the tables are those of padded rows."""
    bloom = Path(make_model(host, tmp_path / "bloom", "bloom"))
    tables = {}
    for packed in (True, False):
        made = config(model, two_sets, tmp_path / str(packed), packed, max_steps=1)
        made["sdpo"]["reference"] = str(bloom)
        log = host.train(write_config(tmp_path / f"{packed}.yaml", made)).check().log_text
        said = "of the model that is loaded for its log-probs: padded rows, because BloomForCausalLM "
        assert (f"forward pass {said}" in log) is packed
        assert ("forward pass: packed rows" in log) is packed
        tables[packed] = [read_table(Path(made["output_dir"]), step) for step in ("step-1", "step-2")]
    for one, other in zip(tables[True], tables[False], strict=True):
        assert off(one, other) == 0.0


def test_auto_pads_where_a_metric_reads_logits(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """A plugin's `compute_metrics` is given them as padded rows have them: `auto` says so, `true` refuses."""
    results = {}
    for packed in ("auto", True):
        made = config(model, two_sets, tmp_path / str(packed), packed, max_steps=1) | {"plugins": PLUGINS}
        path = write_config(tmp_path / f"{packed}.yaml", made)
        results[packed] = host.train(path, env={"SDPO_TEST_FAULT": "metrics:"})
    said = "compute_metrics is given logits as padded rows have them"
    assert f"forward pass: padded rows, because {said}" in results["auto"].check().log_text
    refused(results[True], tmp_path / "True" / "out", f"sdpo.packed: true, but {said}", "set packed: auto")


def test_a_compiled_model_has_padded_rows(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """`torch_compile`, step after step: `auto` says why it pads, and ends with the weights of a model that is not
    compiled; `true` refuses."""
    compiled, said = {"torch_compile": True, "torch_compile_backend": "eager"}, "torch_compile would compile anew"
    outs = []
    for packed, settings in (("auto", compiled), (False, {})):
        made = config(model, two_sets, tmp_path / str(packed), packed, **settings)
        log = host.train(write_config(tmp_path / f"{packed}.yaml", made)).check().log_text
        assert (f"forward pass: padded rows, because {said}" in log) is (packed == "auto")
        outs.append(Path(made["output_dir"]))
    for step in ("step-1", "step-2", ""):
        assert apart(outs[0] / step, outs[1] / step) <= 1e-6
    made = config(model, two_sets, tmp_path / "true", True, **compiled)
    result = host.train(write_config(tmp_path / "true.yaml", made))
    refused(result, Path(made["output_dir"]), f"sdpo.packed: true, but {said}", "set packed: auto")


def test_a_model_that_is_compiled_layer_by_layer_is_refused(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """Its copy would train while the model is in evaluation, and the gate would see no first batch."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    path = write_config(tmp_path / "config.yaml", config(model, two_sets, tmp_path, "auto", **compiled))
    result = host.train(path, env={"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"})
    refused(result, tmp_path / "out", "torch_compile_regional: true, or accelerate's", "leave that variable unset")


def test_auto_pads_by_name_under_fsdp2(host: Host, two_sets: list[Config], tmp_path: Path) -> None:
    """FSDP2 puts a class of its own before Falcon's; the model behind it is asked."""
    falcon = Path(make_model(host, tmp_path / "model", "falcon"))
    sharded = fsdp2(transformer_layer_cls_to_wrap="FalconDecoderLayer")
    made = config(falcon, two_sets, tmp_path / "auto", "auto", max_steps=1, micro_batch_size=2, **sharded)
    log = host.train(write_config(tmp_path / "auto.yaml", made), ranks=2).check().log_text
    assert "FalconForCausalLM does not take an attention by name" in log


def test_auto_pads_where_the_log_probs_differ(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """A model that computes a single row otherwise than several: `auto` says by how much, once, and ends with the bits
    of padded rows; `true` refuses."""
    said = r"the log-probs of packed and padded rows of LlamaForCausalLM differ by up to [\d.]+ nats, which is more"
    results = {}
    for packed in ("auto", False, True):
        made = config(model, two_sets, tmp_path / str(packed), packed) | {"plugins": PLUGINS}
        path = write_config(tmp_path / f"{packed}.yaml", made)
        results[packed] = host.train(path, env={"SDPO_TEST_FAULT": "single:"})
    log = results["auto"].check().log_text
    assert re.search(f"forward pass: padded rows, because {said}", log)
    assert log.count("forward pass: ") == 1
    results[False].check()
    for step in ("step-1", "step-2", ""):
        assert apart(tmp_path / "auto" / "out" / step, tmp_path / "False" / "out" / step) == 0.0
    assert re.search(f"sdpo.packed: true, but {said}", "\n".join(messages(results[True])))
    assert results[True].returncode == 1


@pytest.mark.parametrize(
    ("packed", "most", "pads"), [("auto", 20_000, True), ("auto", 2_000_000, False), (True, 20_000, False)]
)
def test_auto_pads_where_scores_would_be_there_at_once(
    host: Host, two_sets: list[Config], tmp_path: Path, packed: bool | str, most: int, pads: bool
) -> None:
    """Flash attention caps scores a piece at a time; packed rows hold those of a text at once, where they are few, or
    `true` is set, also those of a second model."""
    gemma = make_model(host, tmp_path / "gemma", "gemma2")
    made = config(gemma, two_sets, tmp_path / "run", packed, max_steps=1) | {"plugins": PLUGINS}
    made["sdpo"]["reference"] = str(make_model(host, tmp_path / "reference", "gemma2", seed=1))
    path = write_config(tmp_path / "run.yaml", made)
    log = host.train(path, env={"SDPO_TEST_FAULT": f"flash:{most}"}).check().log_text
    said = "forward pass: padded rows, because Gemma2ForCausalLM caps attention scores or has sinks, and packed rows"
    assert (said in log) is pads
    assert ("forward pass: packed rows" in log) is not pads
    assert "forward pass of the model that is loaded for its log-probs: padded rows" not in log


WINDOW = 72  # tokens; rows of `even_set` are shorter, with a question twice as long they are not
IN_THE_MASK = {"use_sliding_window": True, "sliding_window": WINDOW, "num_experts": 4, "num_experts_per_tok": 2}


def test_held_out_rows_are_tried_too(host: Host, tmp_path: Path) -> None:
    """Qwen2-MoE has its window in the mask alone, where packed rows do not see it. No row of a step is as long, and one
    of the held-out rows."""
    moe = make_model(host, tmp_path / "moe", "qwen2_moe", **IN_THE_MASK, moe_intermediate_size=32)
    sets = [even_set(tmp_path / f"{seed}.jsonl", seed=seed) for seed in (1, 2)]
    rows = read_rows(Path(sets[0]["path"]))
    question = rows[len(rows) // 2]["messages"][0]
    question["content"] += " " + question["content"]
    longer = {**sets[0], "path": str(write_rows(tmp_path / "longer.jsonl", rows))}
    said = {}
    for name, more in (("alone", {}), ("held out", {"test_datasets": [longer]})):
        made = config(moe, sets, tmp_path / name, "auto", max_steps=1, **more)
        said[name] = host.train(write_config(tmp_path / f"{name}.yaml", made)).check().log_text
    assert "forward pass: packed rows" in said["alone"]
    assert "the log-probs of packed and padded rows of Qwen2MoeForCausalLM differ by up to" in said["held out"]


@pytest.mark.parametrize("packed", [True, False])
def test_batches_of_a_reference_leave_no_hooks(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, packed: bool
) -> None:
    """Under gradient checkpointing, which stays on, in passes and beside training: the host's `train()` adds one hook
    a step, no batch."""
    modes = MODES["checkpointing"] | MODES["lora"]
    made = config(model, two_sets, tmp_path, packed, **modes) | {"plugins": PLUGINS}
    made["sdpo"]["reference_refresh"] = {"kl_above": 1000.0}
    notes = tmp_path / "hooks"
    host.train(write_config(tmp_path / "config.yaml", made), env={"SDPO_TEST_FAULT": f"hooks:{notes}"}).check()
    lines = [line.split() for line in notes.read_text(encoding="utf-8").splitlines()]
    counts = [int(count) for count, _ in lines]
    assert len(counts) > 10
    assert max(counts) == min(counts) + 1
    assert {places for _, places in lines} == {"3"}  # the model and its two layers


def test_tokens_are_counted_as_they_are_computed(host: Host, model: Path, tmp_path: Path) -> None:
    """12 rows of one length, two epochs: padded, twice a prompt of p tokens and an answer of n; packed, p + 2n."""
    sets = [even_set(tmp_path / f"{seed}.jsonl", seed=seed) for seed in (1, 2)]
    seen, flos = {}, {}
    for packed in (True, False):
        made = config(model, sets, tmp_path / str(packed), packed, include_tokens_per_second=True, logging_steps=1)
        host.train(write_config(tmp_path / f"{packed}.yaml", made)).check()
        out = Path(made["output_dir"])
        log = json.loads((out / "sdpo" / "history" / "step-1.json").read_text(encoding="utf-8"))["entries"]
        (flos[packed],) = [point["total_flos"] for point in log if "total_flos" in point]
        seen[packed] = max(point["num_input_tokens_seen"] for point in log if "num_input_tokens_seen" in point)
    answers = load_file(out / "sdpo" / "reference" / "step-1.safetensors")
    (answer,) = set(answers["chosen_tokens"].tolist() + answers["rejected_tokens"].tolist())
    prompt = seen[False] / (24 * 2) - answer
    assert prompt > 0
    assert seen[True] == 24 * (prompt + 2 * answer)
    assert flos[True] / flos[False] == pytest.approx(seen[True] / seen[False])


def test_a_half_trained_step_is_resumed_with_the_same_forward_pass(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """Packed, killed and resumed, it ends with the same bits; padded, it is refused by name."""
    saves = {"save_strategy": "steps", "save_steps": 2, "num_epochs": 1}
    life = live(host, base_config(model, two_sets, tmp_path / "whole", **SGD | saves), sdpo={"packed": True})
    event = life.events.index("os.mkdir step-2/checkpoint-4")  # checkpoint 2 of the second step is whole by then
    dead = life.die(tmp_path / "dead", event)
    padded = {**yaml.safe_load(dead.read_text()), "sdpo": {"packed": False}}
    result = host.train(write_config(tmp_path / "dead" / "padded.yaml", padded))
    said = "\n".join(messages(result))
    assert "step step-2 cannot be resumed" in said
    assert "packed (set sdpo.packed: true) is False, and it was True" in said
    assert not any("sdpo_packed" in path.read_text(encoding="utf-8") for path in dead.parent.rglob("config.json"))
    assert weights_digest(life.resume(dead)) == weights_digest(life.out)


def test_a_table_is_the_same_for_both_forward_passes(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """Killed when the reference table is there and no checkpoint, a step may go on with padded rows: to rounding."""
    saves = {"save_strategy": "no", "num_epochs": 1}
    life = live(host, base_config(model, two_sets, tmp_path / "whole", **SGD | saves), sdpo={"packed": True})
    last_update = max(number for number, event in enumerate(life.events, 1) if event == "train")
    dead = life.die(tmp_path / "dead", last_update)
    made = yaml.safe_load(dead.read_text())
    before = (Path(made["output_dir"]) / "sdpo" / "reference" / "step-2.safetensors").read_bytes()
    padded = write_config(tmp_path / "dead" / "padded.yaml", {**made, "sdpo": {"packed": False}})
    host.train(padded).check()
    assert (Path(made["output_dir"]) / "sdpo" / "reference" / "step-2.safetensors").read_bytes() == before
    assert 0.0 < apart(Path(made["output_dir"]), life.out) <= 1e-6
