"""LoRA: the reference of step t is the adapter of step t-1, not the bare base model.

The chain by hand reloads the adapter of step 1 and continues training it; `harness/lora_chain.py` says how.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, even_set, lora_config, write_config
from integration_tests.harness.expected_log_probs import expect_table, mean_off, off, read_table, texts
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import PACKED, PADDED, read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

LOG_PROBS = "integration_tests.harness.probes:log_probs"
ADAMW = {"learning_rate": 1.0e-2, "num_epochs": 3}
SGD = {"optimizer": "sgd", "learning_rate": 0.2, "num_epochs": 3}


def plain_run(host: Host, config: Config, entry: Config, folder: Path) -> Path:
    """The output directory of `rl: dpo` on one set, from a new adapter."""
    made = {**config, "datasets": [entry], "output_dir": str(folder / "out")}
    host.train(write_config(folder / "config.yaml", made)).check()
    return folder / "out"


def run_from_adapter(host: Host, config: Config, entry: Config, folder: Path, adapter: Path) -> Path:
    """The same from a saved adapter, whose frozen copy is the reference."""
    path = write_config(folder / "config.yaml", {**config, "datasets": [entry], "output_dir": str(folder / "out")})
    host.python("integration_tests.harness.lora_chain:train_from_adapter", path, adapter)
    return folder / "out"


@pytest.fixture(scope="module")
def even_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """Rows of one length, in which no padding can differ: see test_equivalence.py."""
    folder = tmp_path_factory.mktemp("even")
    return [even_set(folder / "d1.jsonl", 24, 1), even_set(folder / "d2.jsonl", 32, 2)]


@pytest.fixture(scope="module")
def config(model: Path, even_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The run that all tests here look at."""
    return lora_config(model, even_sets, tmp_path_factory.mktemp("lora"), **ADAMW)


@pytest.fixture(scope="module")
def runs(host: Host, config: Config, even_sets: list[Config]) -> list[Path]:
    """The output directories of stepwise DPO, and of a plain host run on D_1, from the same random adapter."""
    folder = Path(config["output_dir"]).parent
    return at_once(
        lambda: run_sdpo(host, sdpo_config(config, sdpo=PADDED)),
        lambda: plain_run(host, config, even_sets[0], folder / "plain"),
    )


def test_first_step_equals_a_host_run(runs: list[Path]) -> None:
    """The adapter of step 1 is that of `rl: dpo` on D_1, whose reference is the model without its adapter."""
    out, plain = runs
    assert apart(out / "step-1", plain) == 0.0  # AdamW, 18 updates; measured: 0.0


def test_second_step_equals_a_run_from_the_saved_adapter(
    host: Host, config: Config, even_sets: list[Config], runs: list[Path], tmp_path: Path
) -> None:
    """The final adapter is that of a run on D_2 which loads M_1 and takes a frozen copy of it as its reference."""
    out, _ = runs
    by_hand = run_from_adapter(host, config, even_sets[1], tmp_path, out / "step-1")
    assert apart(out, by_hand) == 0.0  # AdamW, 24 updates; measured: 0.0
    assert apart(out, out / "step-2") == 0.0
    assert apart(out, out / "step-1") > 1e-2


@pytest.mark.parametrize("mode", [{}, {"peft_use_dora": True}], ids=["lora", "dora"])
def test_packed_rows_end_with_the_adapters_of_the_chain_by_hand(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, mode: Config
) -> None:
    """Rows of all lengths: the host pads them and computes its reference anew in every epoch."""
    config = lora_config(model, two_sets, tmp_path / "run", **SGD, **mode)

    def chain_by_hand() -> Path:
        first = plain_run(host, config, two_sets[0], tmp_path / "plain")
        return run_from_adapter(host, config, two_sets[1], tmp_path / "second", first)

    out, by_hand = at_once(lambda: run_sdpo(host, sdpo_config(config, sdpo=PACKED)), chain_by_hand)
    assert apart(out / "step-1", tmp_path / "plain" / "out") <= 1e-6
    assert apart(out, by_hand) <= 1e-6
    assert apart(out, out / "step-1") > 1e-2


def test_reference_is_the_adapter_before_and_not_the_base(
    host: Host, model: Path, config: Config, runs: list[Path]
) -> None:
    """The table of D_2 stands for base and adapter of step 1; the base alone is nats away."""
    out, _ = runs
    prepared = Path(config["dataset_prepared_path"])
    base, first, final = expect_table(host, prepared, 32, model, out / "step-1", out)
    table = read_table(out, "step-2")
    assert off(table, first) <= 1e-4  # float32, a row by itself against a batch; measured: 3e-5 of 170 nats
    assert mean_off(table, base) > 1  # measured: 27
    assert mean_off(table, final) > 1  # measured: 24
    (base_1,) = expect_table(host, prepared, 24, model)
    assert off(read_table(out, "step-1"), base_1) <= 1e-4  # a new adapter changes nothing; measured: 3e-5


def test_both_steps_begin_at_ln_2(runs: list[Path]) -> None:
    """The report has both first losses."""
    steps = read_report(runs[0])["steps"]
    assert [step["first_loss"] for step in steps] == pytest.approx([0.693147, 0.693147], abs=1e-4)
    assert [step["num_optimizer_steps"] for step in steps] == [18, 24]


def test_the_final_directory_is_an_adapter_and_nothing_else(
    host: Host, even_sets: list[Config], runs: list[Path]
) -> None:
    """However it is loaded it is M_2. The host leaves base layers with other names there, which load as a bad model."""
    out, plain = runs
    assert (plain / "model.safetensors").exists()  # what is kept from a stepwise run
    left = {path.name for path in out.glob("*") if path.is_file()}
    assert "adapter_model.safetensors" in left
    assert not left & {"model.safetensors", "config.json"}, "transformers would read these in place of the base model"
    rows = texts(even_sets[1])[:8]
    log_probs = {
        (folder.name, by_peft): np.array(host.python(LOG_PROBS, folder, rows, by_peft=by_peft))
        for folder in (out, out / "step-2")
        for by_peft in (True, False)
    }
    expected = log_probs["step-2", True]
    for how, found in log_probs.items():
        assert off(found, expected) <= 1e-4, how  # measured: 0.0; 282 nats with what the host leaves


def test_two_ranks_leave_no_more(host: Host, config: Config, tmp_path: Path) -> None:
    """Under ZeRO-3 and without it."""
    zero3 = {"deepspeed": str(write_zero3(tmp_path / "zero3.json"))}
    for name, ranks in (("zero3", zero3), ("ddp", {})):
        folder = tmp_path / name
        made = {**config, **ranks, "micro_batch_size": 2, "max_steps": 1, "output_dir": str(folder / "out")}
        out = run_sdpo(host, made, ranks=2)
        assert not {"model.safetensors", "config.json"} & {path.name for path in out.iterdir()}
        assert apart(out, out / "step-2") == 0.0


def test_the_estimate_counts_what_lies_there(host: Host, runs: list[Path], config: Config, tmp_path: Path) -> None:
    """M_0's adapter, one a step, the final one, and checkpoints with two states of AdamW."""
    made = sdpo_config({**config, "output_dir": str(tmp_path / "out"), "num_epochs": 1, "save_strategy": "epoch"})
    log = host.train(write_config(tmp_path / "config.yaml", made)).check().log_text
    lines = [line for line in log.splitlines() if line.startswith(("exported models", "final model", "checkpoints"))]
    assert [line.split()[-3] for line in lines] == ["3", "1", "2"]
    weights = [path for path in (tmp_path / "out").rglob("*.safetensors") if path.name == "adapter_model.safetensors"]
    found = [path.parent for path in weights]
    checkpoints = [path for path in found if path.name.startswith("checkpoint-")]
    assert (len(checkpoints), len(found)) == (2, 3 + 1 + 2), found
