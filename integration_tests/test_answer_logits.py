"""Logits of answer tokens alone, and of a large vocabulary in parts: TRL reads what it reads of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.env import ROOT
from integration_tests.harness.fsdp2 import fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.models import make_model
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3

COMPARE = "integration_tests.harness.packed:compare"
HEADS = "integration_tests.harness.heads"
PLUGINS = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin"]
PARTS = {"SDPO_TEST_FAULT": "parts:20000"}  # a few tokens of the tests' vocabularies
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}
SAVES: dict[str, Any] = {"save_strategy": "epoch", "logging_steps": 1, "val_set_size": 0.25, "eval_strategy": "epoch"}
# Everything that TRL logs of a batch's logits.
OF_LOGITS = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy", "num_tokens", "loss")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gpt_neox", "gpt2", "mixtral", "gemma2"])
def test_in_parts_log_probs_and_gradients_are_those_of_padded_rows(host: Host, kind: str) -> None:
    """A head of its own, and one that is the embeddings' (GPT-2); logits that are capped (Gemma 2)."""
    found = host.python(COMPARE, kind, "sdpa", "parts")
    assert found["log-probs"] <= 1e-5 * found["largest"]
    assert found["gradients"] <= 1e-4
    assert found["weights"] <= 1e-5 < 1e-3 < found["moved"]
    assert found["leaks"] == 0.0


def test_no_array_has_the_logits_of_more_tokens(host: Host) -> None:
    """Forward and backward: 3 at a time, where they are read in parts; else as many as answers have, and no padding."""
    found = host.python("integration_tests.harness.packed:most_logits", "llama")
    assert found["whole"] == found["tokens"]
    assert found["parts"] == 3


def test_what_a_head_is_found_to_be(host: Host) -> None:
    """A model that changes what its head gives is known, also where it writes into it."""
    found = host.python(f"{HEADS}:found_to_be_last")
    assert found == {"nothing": True, "a scale": False, "a scale in place": False}


def test_outputs_that_are_rounded_leave_log_probs_as_they_are(host: Host) -> None:
    """FSDP2 gives what comes out of a model in half precision: gradients go through it, numbers do not."""
    off = host.python(f"{HEADS}:rounded_outputs")
    assert off["log-probs"] == 0.0
    assert off["gradients"] <= 1e-2 * off["largest gradient"]


def test_a_head_is_left_as_it_was(host: Host) -> None:
    """Ours is undone, another's forward is nobody's but its own."""
    assert host.python(f"{HEADS}:left_as_it_was") == {"plain": True, "other": True, "cap": True}


def run(
    host: Host, model: Path, sets: list[Config], folder: Path, packed: bool, ranks: int = 1, **more: Any
) -> tuple[Path, str]:
    """A run in a folder of its own, packed with few logits at once, or padded: its output, and its log."""
    shared = {"optimizer": "sgd", "learning_rate": 1.0e-2, "num_epochs": 2}
    config = sdpo_config(base_config(model, sets, folder, **shared | more), sdpo={"packed": packed}, plugins=PLUGINS)
    result = host.train(write_config(folder / "config.yaml", config), env=PARTS if packed else {}, ranks=ranks)
    return folder / "out", result.check().log_text


def parts(log: str) -> tuple[int, int, int]:
    """How often logits were read in parts, how often in all, and else of how many tokens, as the last step says."""
    found = re.findall(r"logits read in parts: (\d+) of (\d+) times, else of (\d+) tokens", log)[-1]
    return int(found[0]), int(found[1]), int(found[2])


MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA | {"lora_target_linear": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "capped logits": {"arch": "gemma2"},
    "another loss": {"dpo_loss_type": ["ipo", "sft"], "dpo_loss_weights": [1.0, 0.1]},
    "zero3": {"ranks": 2, "micro_batch_size": 2},
    "ddp": {"ranks": 2, "micro_batch_size": 2},
    "fsdp2": {"ranks": 2, "micro_batch_size": 2, **fsdp2()},
}


@pytest.mark.parametrize("mode", MODES)
def test_runs_in_parts_end_with_the_weights_of_padded_rows(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, mode: str
) -> None:
    """Whole runs by the command line. Only the trial of a few tokens, 2 pairs padded, has all logits at once."""
    more = dict(MODES[mode])
    if "arch" in more:
        model = Path(make_model(host, tmp_path / "base", more.pop("arch")))
    if mode == "zero3":
        more["deepspeed"] = str(write_zero3(tmp_path / "zero3.json"))
    out, log = run(host, model, two_sets, tmp_path / "parts", packed=True, **more)
    padded, _ = run(host, model, two_sets, tmp_path / "padded", packed=False, **more)
    in_parts, calls, most = parts(log)
    assert in_parts >= calls - 3 > 10
    assert most <= 2 * 2 * (4 + 4)
    for step in ("step-1", "step-2", ""):
        assert apart(out / step, padded / step) <= 1e-6
    assert apart(out / "step-1", out) >= 1e-3


@pytest.mark.parametrize("env", [{}, PARTS], ids=["whole", "in parts"])
def test_what_is_logged_of_logits_is_what_padded_rows_give(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, env: dict[str, str]
) -> None:
    """Entropy, mean logits, accuracy, tokens: of every update and of every evaluation."""
    logged = []
    for packed in (True, False):
        config = base_config(model, two_sets, tmp_path / str(packed), **SAVES)
        path = write_config(tmp_path / f"{packed}.yaml", sdpo_config(config, sdpo={"packed": packed}, plugins=PLUGINS))
        host.train(path, env=env if packed else {}).check()
        states = sorted((tmp_path / str(packed) / "out").glob("step-*/checkpoint-*/trainer_state.json"))
        logged.append([entry for state in states for entry in json.loads(state.read_text())["log_history"]])
    seen = set()
    for one, other in zip(*logged, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & {prefix + name for prefix in ("", "eval_") for name in OF_LOGITS}:
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
            seen.add(key)
    assert seen >= {*OF_LOGITS, "eval_entropy", "eval_logits/rejected", "eval_mean_token_accuracy", "eval_loss"}


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled logits": ("granite", {}),
    "an adapter at the head": ("llama", LORA | {"lora_target_modules": ["q_proj", "lm_head"]}),
    "weighted pairs": ("llama", {"dpo_use_weighting": True}),
}


@pytest.mark.parametrize("case", WHOLE)
def test_where_logits_are_needed_at_once_they_are_not_read_in_parts(
    host: Host, two_sets: list[Config], tmp_path: Path, case: str
) -> None:
    """What comes after a head would change what is kept; the run ends as padded rows do."""
    arch, more = WHOLE[case]
    scaled = {"logits_scaling": 4.0} if arch == "granite" else {}
    model = Path(make_model(host, tmp_path / "base", arch, **scaled))
    out, log = run(host, model, two_sets, tmp_path / "packed", packed=True, **more)
    padded, _ = run(host, model, two_sets, tmp_path / "padded", packed=False, **more)
    assert parts(log)[0] == 0
    assert apart(out, padded) <= 1e-6
    assert apart(out / "step-1", out) >= 1e-4


def test_with_another_cross_entropy(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Liger puts its own in PyTorch's place wherever a model is loaded, the external reference among them."""
    reference = str(make_model(host, tmp_path / "reference", seed=1))
    ends = []
    for packed in (True, False):
        folder = tmp_path / str(packed)
        config = base_config(model, two_sets, folder, dpo_loss_type=["sigmoid", "sft"], optimizer="sgd")
        made = sdpo_config(config, sdpo={"packed": packed, "reference": reference}, plugins=PLUGINS)
        host.train(write_config(folder / "config.yaml", made), env={"SDPO_TEST_FAULT": "cross-entropy:"}).check()
        ends.append(folder / "out")
    assert apart(*ends) <= 1e-6


def test_the_docs_say_how_many_at_once() -> None:
    """The bytes that docs/packed.md names are those of the code, of logits and of attention scores."""
    text = (ROOT / "docs" / "packed.md").read_text(encoding="utf-8")
    for module, name, what in (("head", "LOGITS", "in float32"), ("scores", "SCORES", "a layer in float32")):
        code = (ROOT / f"sdpo_plugin/host/forward/{module}.py").read_text(encoding="utf-8")
        said = re.search(rf"more than (\d+) MiB {what}", text)
        written = re.search(rf"{name}_AT_ONCE = (\d+) \* 2\*\*20", code)
        assert said
        assert written
        assert said[1] == written[1]
