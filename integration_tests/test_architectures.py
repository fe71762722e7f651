"""The architectures users train, with all their defaults, dropout included: each step begins at its reference."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart, at_once, compare
from integration_tests.harness.data import (
    Config,
    base_config,
    chat_set,
    intel_set,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.expected_log_probs import expect_table, mean_off, off, read_table
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.models import ARCHITECTURES, make_model
from integration_tests.harness.positions import CONFIGS, SIZE
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "bloom": "BloomForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}


@dataclass(frozen=True)
class Run:
    """M_0, and the finished run of two steps that started from it."""

    base: Path
    out: Path


def train(host: Host, folder: Path, datasets: list[Config], arch: str) -> Run:
    """Make the model and train it: two steps of three updates."""
    base = make_model(host, folder / "base", arch)
    return Run(base, run_sdpo(host, base_config(base, datasets, folder, learning_rate=5.0e-3)))


@pytest.fixture(scope="module")
def runs(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run an architecture."""
    folder = tmp_path_factory.mktemp("architectures")
    sets = [chat_set(folder / "d1.jsonl", 12, 1), intel_set(folder / "d2.jsonl", 11, 2)]
    jobs = [partial(train, host, folder / arch, sets, arch) for arch in ARCHITECTURES]
    return dict(zip(ARCHITECTURES, at_once(*jobs), strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_steps_begin_at_ln_2(runs: dict[str, Run], arch: str) -> None:
    """Also where dropout is on by default (gpt2, opt) or not a module that TRL finds (opt, bloom)."""
    steps = read_report(runs[arch].out)["steps"]
    # float32 and β 0.1. Measured: 3.6e-7 at most.
    assert [step["first_loss"] for step in steps] == pytest.approx([0.693147, 0.693147], abs=1e-4)
    assert [step["num_optimizer_steps"] for step in steps] == [3, 3]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_models_load_and_run(host: Host, runs: dict[str, Run], arch: str) -> None:
    """M_1 and the final model are models of the same class and vocabulary, with the tokenizer beside them."""
    for folder in (runs[arch].out / "step-1", runs[arch].out):
        loaded = host.python("integration_tests.harness.probes:load_ok", folder)
        assert (loaded["class"], loaded["vocab"], loaded["eos"]) == (CLASSES[arch], 384, "<|im_end|>")
        assert json.loads((folder / "config.json").read_text())["model_type"] == arch


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_second_reference_is_the_first_model(host: Host, runs: dict[str, Run], arch: str) -> None:
    """D_2's table is that of the exported M_1, and not of the base."""
    base, out = runs[arch].base, runs[arch].out
    table = read_table(out, "step-2")
    before, first = expect_table(host, out.parent / "prepared", 11, base, out / "step-1")
    assert off(table, first) <= 1e-4  # float32, a row by itself against a batch; measured: 3.1e-5
    assert mean_off(table, before) > 1  # measured: 3.3 to 7.5 nats


@pytest.fixture(scope="module")
def limits(host: Host) -> dict[str, Any]:
    """The limit that the plugin finds for each architecture, and the row lengths that it really takes."""
    return dict(host.python("integration_tests.harness.positions:limits"))


@pytest.mark.parametrize("arch", CONFIGS)
def test_limit_of_positions_is_what_the_model_takes(limits: dict[str, Any], arch: str) -> None:
    """Learned tables with and without an offset, sines in a table that cannot grow; rotary and ALiBi have no limit."""
    seen = limits[arch]
    assert seen["taken"] == ([SIZE, SIZE + 1, 4 * SIZE] if seen["limit"] is None else [SIZE])
    assert seen["limit"] in (None, SIZE)
    assert seen["looked for"] or seen["limit"] is None
    assert not (arch in ("llama", "mistral", "qwen2", "gpt_neox", "bloom") and seen["looked for"])


@pytest.mark.parametrize(
    ("arch", "size", "ranks", "what"),
    [
        pytest.param("gpt2", {"n_positions": 24}, 1, "step-1: ", id="gpt2"),
        pytest.param("opt", {"max_position_embeddings": 24}, 2, "step-1: ", id="opt-zero3"),
        pytest.param("gpt2", {"n_positions": 80}, 1, "held-out long: ", id="held-out"),
    ],
)
def test_rows_without_positions_are_refused_at_the_start(
    host: Host, tmp_path: Path, arch: str, size: dict[str, int], ranks: int, what: str
) -> None:
    """Not when their log-probs are computed, after all steps before theirs."""
    sets = [chat_set(tmp_path / f"d{seed}.jsonl", 12, seed) for seed in (1, 2)]
    long = chat_set(tmp_path / "long.jsonl", 1, 3, long_rows=1)
    zero3 = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2} if ranks > 1 else {}
    tests = {"test_datasets": [long], "val_set_size": None, "sequence_len": 2048} if "held" in what else {}
    base = make_model(host, tmp_path / "base", arch, **size)
    config = sdpo_config(base_config(base, sets, tmp_path, **zero3, **tests))
    result = host.train(write_config(tmp_path / "config.yaml", config), ranks=ranks)
    (limit,) = size.values()
    refused(result, tmp_path / "out", what, f"its table has {limit} places", f"set sequence_len: {limit},")


LIMIT = 40  # tokens


def longrope(host: Host, path: Path) -> Path:
    """A model that is made for so many tokens, and scales positions otherwise where a row has more."""
    scaling = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return make_model(host, path, "llama", rope_parameters=scaling | factors)


@pytest.mark.parametrize("kind", ["batches", "zero3", "packed pairs"])
def test_rows_that_scale_the_positions_of_others_are_refused_at_the_start(
    host: Host, tmp_path: Path, kind: str
) -> None:
    """Phi-3's scaling: some rows are longer than the model was made for, and whose batch they are in is chance."""
    sets = [chat_set(tmp_path / f"d{seed}.jsonl", 12, seed) for seed in (1, 2)]
    settings: dict[str, dict[str, Any]] = {
        "batches": {"sdpo": {"packed": False}},
        "zero3": {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2},
        "packed pairs": {"micro_batch_size": 1, "eval_batch_size": 1},  # a table's batch has several
    }
    config = sdpo_config(base_config(longrope(host, tmp_path / "base"), sets, tmp_path, **settings[kind]))
    result = host.train(write_config(tmp_path / "config.yaml", config), ranks=2 if kind == "zero3" else 1)
    parts = ("step-1: ", f"rows are longer than {LIMIT} tokens", "(rope_type: longrope)", f"Set sequence_len: {LIMIT},")
    refused(result, tmp_path / "out", *parts)


def test_axolotl_evaluate_refuses_them_too(host: Host, tmp_path: Path) -> None:
    """A table has other batches than the run whose numbers it would be compared with."""
    *sets, held_out = (chat_set(tmp_path / f"d{seed}.jsonl", 12, seed) for seed in (1, 2, 3))
    tests = {"test_datasets": [held_out], "val_set_size": None}
    made = base_config(longrope(host, tmp_path / "base"), sets, tmp_path, **tests)
    path = write_config(tmp_path / "config.yaml", sdpo_config(made))
    result = host.run(["evaluate", str(path), "--launcher", "python"], tmp_path)
    parts = ("held-out d3: ", f"rows are longer than {LIMIT} tokens", "(rope_type: longrope)", "the log-probs of a row")
    refused(result, tmp_path / "out", *parts)
    assert not (tmp_path / "out" / "eval_summary.csv").exists()


def test_rows_that_scale_the_positions_of_others_are_those_that_do(host: Host) -> None:
    """Where all rows are shorter, or none is, longrope scales all alike; dynamic has another scale for each length."""
    for name, found in host.python("integration_tests.harness.positions:scalings").items():
        kind = name.split()[1]
        depends = kind in ("longrope", "dynamic")
        assert (found["moved"] > 1e-3) == depends, name
        assert found["moved"] > 1e-3 or found["moved"] <= 1e-4, name
        assert found["shorter"] is None
        assert (found["both"] is None) == (not depends), name
        assert (found["alone"] is None) == (kind != "dynamic"), name
        assert (found["longer"] is None) == (kind != "dynamic"), name
        if depends:
            assert found["both"].startswith("D_2: 2 of 3 rows are longer than 16 tokens (the longest row has 40), and ")
            assert ("packed: false under sdpo, micro_batch_size: 1" in found["both"]) == (kind == "longrope")


def test_a_pair_by_itself_has_its_own_positions(host: Host, tmp_path: Path) -> None:
    """The rows of the run that is refused above, one at a time: the host's own chain."""
    sets = [chat_set(tmp_path / f"d{seed}.jsonl", 12, seed) for seed in (1, 2)]
    alone = {"micro_batch_size": 1, "eval_batch_size": 1, "optimizer": "sgd", "learning_rate": 1.0e-2}
    base = longrope(host, tmp_path / "base")
    run = compare(host, base_config(base, sets, tmp_path / "run", **alone) | {"sdpo": {"packed": False}}, sets)
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
        assert apart(mine, base) >= 1e-3


def digits_set(path: Path, digits: range) -> Config:
    """Rows with so many digits in their answers, a token each with the space before it."""
    entry, rng = chat_set(path), random.Random(len(digits))
    rows = read_rows(path)
    for row in rows:
        row["messages"][0]["content"] = str(rng.randrange(10))
        for side in ("chosen", "rejected"):
            row[side]["content"] = " ".join(rng.choices("0123456789", k=rng.choice(digits)))
    write_rows(path, rows)
    return entry


@pytest.mark.parametrize("packed", [True, False])
def test_each_steps_rows_are_looked_at_by_themselves(host: Host, tmp_path: Path, packed: bool) -> None:
    """No row of D_1 is long enough to scale positions otherwise, and every one of D_2 is: the host's own chain. As one
    pool they are refused."""
    sets = [digits_set(tmp_path / "short.jsonl", range(1, 4)), digits_set(tmp_path / "long.jsonl", range(30, 40))]
    base = longrope(host, tmp_path / "base")
    made = base_config(base, sets, tmp_path / "run", optimizer="sgd", learning_rate=1.0e-2)
    natural = {} if packed else {"partition": {"strategy": "natural"}}  # the same steps
    run = compare(host, made | {"sdpo": {"packed": packed, **natural}}, sets)
    for mine, by_hand in zip(run.steps, run.chain, strict=True):
        assert apart(mine, by_hand) <= 1e-6
        assert apart(mine, base) >= 1e-3
    if packed:
        pool = {"partition": {"strategy": "random", "num_steps": 2}}
        config = base_config(base, sets, tmp_path / "pool") | {"sdpo": pool}
        result = host.train(write_config(tmp_path / "pool.yaml", sdpo_config(config)))
        refused(
            result,
            tmp_path / "pool" / "out",
            "long: 12 of 12 rows are longer than",
            "(rope_type: longrope)",
        )


def test_rotary_models_take_rows_of_any_length(host: Host, tmp_path: Path) -> None:
    """The largest number of positions in their config is the one they were trained with, and not a limit."""
    sets = [chat_set(tmp_path / f"d{seed}.jsonl", 12, seed) for seed in (1, 2)]
    base = make_model(host, tmp_path / "base", "llama", max_position_embeddings=16)
    assert read_report(run_sdpo(host, base_config(base, sets, tmp_path, max_steps=1)))["finished"]
