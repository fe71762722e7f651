"""The architectures users train, with all their defaults, dropout included: each step begins at its reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from integration_tests.harness.compare import at_once
from integration_tests.harness.data import Config, base_config, chat_set, intel_set
from integration_tests.harness.launch import Host
from integration_tests.harness.models import ARCHITECTURES, make_model
from integration_tests.harness.sdpo import read_report, run_sdpo
from integration_tests.harness.tables import expect_table, mean_off, off, read_table

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
    """D_2's table is what the exported M_1 scores, and not what the base does."""
    base, out = runs[arch].base, runs[arch].out
    table = read_table(out, "step-2")
    before, first = expect_table(host, out.parent / "prepared", 11, base, out / "step-1")
    assert off(table, first) <= 1e-4  # float32, a row by itself against a batch; measured: 3.1e-5
    assert mean_off(table, before) > 1  # measured: 3.3 to 7.5 nats
