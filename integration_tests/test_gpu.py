"""What a CPU cannot show: bfloat16 through the command line, 4-bit weights, ZeRO-3 with NCCL, resume. On a machine with
a GPU; elsewhere skipped by name. Every run is a process of its own: CUDA does not live through a fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, lora_config, write_config
from integration_tests.harness.env import ROOT
from integration_tests.harness.fresh import run_fresh
from integration_tests.harness.launch import Host
from integration_tests.harness.models import make_model
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config
from integration_tests.harness.zero3 import write_zero3

GPU = Path("/dev/nvidia0")
pytestmark = pytest.mark.skipif(not GPU.exists(), reason="no GPU")

MAKE = {"full": base_config, "lora": lora_config, "qlora": partial(lora_config, adapter="qlora", load_in_4bit=True)}
IN_BF16: dict[str, Any] = {"bf16": True, "attn_implementation": "sdpa", "optimizer": "sgd", "learning_rate": 1.0e-1}
PLUGINS = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin"]
SEED = {"SDPO_TEST_SEED": "0"}
NOISE = 0.2  # of how far a step moves the weights: with SGD a wrong gradient is as far off as it is wrong
GATE = 0.05  # of ln 2: half a margin's noise at β 0.1 and rows this short


@pytest.fixture(scope="module")
def wide(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers can be quantized and whose heads the kernels take."""
    config = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    return make_model(host, tmp_path_factory.mktemp("wide") / "llama", **config)


def train(host: Host, folder: Path, config: Config, **overrides: Any) -> Result:
    """`axolotl train` in one process, by the real executable."""
    made = sdpo_config(config, plugins=PLUGINS, **overrides)
    command = ["train", str(write_config(folder / "config.yaml", made)), "--launcher", "python"]
    return run_fresh(command, folder, host.scratch, env=SEED)


def check(out: Path) -> None:
    """Both steps began at ln 2, and the second moved the model."""
    report = read_report(out)
    assert report["finished"]
    assert [step["first_loss"] for step in report["steps"]] == pytest.approx([0.6931, 0.6931], abs=GATE)
    assert apart(out / "step-1", out) > 0


@pytest.mark.parametrize("kind", MAKE)
def test_bfloat16(host: Host, wide: Path, two_sets: list[Config], tmp_path: Path, kind: str) -> None:
    """Packed and padded: both begin at ln 2, and end near each other."""
    ends = {}
    for packed in (True, False):
        folder = tmp_path / str(packed)
        config = MAKE[kind](wide, two_sets, folder, **IN_BF16)
        log = train(host, folder, config, sdpo={"packed": packed}).check().log_text
        assert ("forward pass: packed rows" in log) == packed
        check(folder / "out")
        ends[packed] = folder / "out"
    moved = apart(ends[True] / "step-1", ends[True])
    assert apart(ends[True], ends[False]) <= NOISE * moved
    assert moved > 0


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_the_kernel_for_all_pairs_is_no_noisier(kind: str) -> None:
    """Than attention pair by pair: bfloat16 beside float32, with grouped heads and windows shorter than a row."""
    code = f"import json; from integration_tests.harness.packed import on_gpu; print(json.dumps(on_gpu({kind!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    off = json.loads(done.stdout.splitlines()[-1])
    assert 0.0 < off["kernel"] <= 2 * off["pairs"]


@pytest.mark.parametrize("size", [64, 80, 96, 256])
@pytest.mark.parametrize("window", [None, 1, 7])
def test_the_kernel_computes_what_plain_pytorch_does(window: int | None, size: int) -> None:
    """Output and gradients, for texts of other lengths than what they see, windows and grouped heads."""
    code = "import json; from integration_tests.harness.packed import kernel_on_gpu; "
    code += f"print(json.dumps(kernel_on_gpu({window}, {size})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert max(json.loads(done.stdout.splitlines()[-1]).values()) <= 0.03


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_zero3(host: Host, wide: Path, two_sets: list[Config], tmp_path: Path, kind: str) -> None:
    """One rank, NCCL, bfloat16 with float32 master weights."""
    sections = {"bf16": {"enabled": True}}
    deepspeed = str(write_zero3(tmp_path / "deepspeed.json", sections))
    config = MAKE[kind](wide, two_sets, tmp_path, **IN_BF16, deepspeed=deepspeed)
    train(host, tmp_path, config).check()
    check(tmp_path / "out")


@pytest.mark.parametrize("kind", MAKE)
def test_resume(host: Host, wide: Path, two_sets: list[Config], tmp_path: Path, kind: str) -> None:
    """A run that died in step 2 ends near one that did not: kernels on a GPU add in no fixed order."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, **IN_BF16}
    config = MAKE[kind](wide, two_sets, tmp_path / "whole", **saving)
    train(host, tmp_path / "whole", config).check()
    config = MAKE[kind](wide, two_sets, tmp_path / "dead", **saving, auto_resume_from_checkpoints=True)
    made = write_config(tmp_path / "dead" / "config.yaml", sdpo_config(config, plugins=PLUGINS))
    command = ["train", str(made), "--launcher", "python"]
    assert run_fresh(command, tmp_path, host.scratch, env=SEED | {"SDPO_TEST_FAULT": "raise:2:5:0"}).returncode == 1
    assert "resuming step 2 from" in run_fresh(command, tmp_path, host.scratch, env=SEED).check().log_text
    whole = tmp_path / "whole" / "out"
    moved = apart(whole / "step-1", whole)
    assert apart(tmp_path / "dead" / "out", whole) <= NOISE * moved
    assert moved > 0
