"""DeepSpeed ZeRO-3 on two ranks: the same models and tables as in one process, step after step.

Two ranks with half the batch each see what one process sees, in the same order. Gradients are summed in another
order and batches are padded to another width, so that rounding differs; with SGD it stays rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, even_set, intel_set, lora_config
from integration_tests.harness.expected_log_probs import expect_table, mean_off, off, read_table
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import PACKED, PADDED, read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

FULL = {"optimizer": "sgd", "learning_rate": 1.0e-2, "num_epochs": 2}
LORA = {"optimizer": "sgd", "learning_rate": 0.2, "num_epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("zero3")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Any]:
    """The overrides that run a config on two ranks: ZeRO-3, and half the batch on each."""
    return {"deepspeed": str(write_zero3(folder / "zero3.json")), "micro_batch_size": 2}


@pytest.fixture(scope="module")
def alone(host: Host, model: Path, two_sets: list[Config], folder: Path) -> list[Path]:
    """In one process, with padded rows: full fine-tuning, LoRA."""
    full = base_config(model, two_sets, folder / "full-alone", **FULL, sdpo=PADDED)
    lora = lora_config(model, two_sets, folder / "lora-alone", **LORA, sdpo=PADDED)
    return at_once(lambda: run_sdpo(host, full), lambda: run_sdpo(host, lora))


@pytest.fixture(scope="module")
def full(host: Host, model: Path, two_sets: list[Config], folder: Path, two_ranks: dict[str, Any]) -> Path:
    """On two ranks, into a folder where nothing is prepared yet: one rank makes the sets, the other loads them."""
    return run_sdpo(host, base_config(model, two_sets, folder / "full", **FULL | two_ranks, sdpo=PACKED), ranks=2)


@pytest.fixture(scope="module")
def lora(host: Host, model: Path, two_sets: list[Config], folder: Path, two_ranks: dict[str, Any]) -> Path:
    """LoRA on two ranks."""
    return run_sdpo(host, lora_config(model, two_sets, folder / "lora", **LORA | two_ranks, sdpo=PACKED), ranks=2)


@pytest.fixture(scope="module")
def retrained(
    host: Host, model: Path, two_sets: list[Config], folder: Path, full: Path, two_ranks: dict[str, Any]
) -> Path:
    """The run `full` again, with all it has prepared, but another M_1: step 1 learns ten times as fast."""
    config = base_config(model, two_sets, folder / "retrained", **FULL | two_ranks)
    config["dataset_prepared_path"] = str(folder / "full" / "prepared")
    faster = {"learning_rate": 0.1, "datasets": [two_sets[0]]}
    block = {"steps": [faster, {"datasets": [two_sets[1]]}]}
    return run_sdpo(host, sdpo_config(config, datasets=None, sdpo=block), ranks=2)


def test_full_equals_one_process(model: Path, alone: list[Path], full: Path) -> None:
    """M_1, M_2 and the final model."""
    # Measured: M_1 1.2e-7, M_2 1.2e-7, where the weights moved by 3.9e-3 and another 1.8e-3.
    for step in ("step-1", "step-2", ""):
        assert apart(full / step, alone[0] / step) <= 1e-6
    assert apart(full / "step-1", model) > 1e-3
    assert apart(full / "step-1", full) > 1e-3


def test_lora_equals_one_process(alone: list[Path], lora: Path) -> None:
    """The adapters of both steps, from the same random adapter."""
    # Measured: M_1 7.1e-8, M_2 1.6e-7, where the second step moved the adapter by 0.13.
    for step in ("step-1", "step-2", ""):
        assert apart(lora / step, alone[1] / step) <= 1e-6
    assert apart(lora / "step-1", lora) > 1e-2


@pytest.mark.parametrize("step", ["step-1", "step-2"])
def test_tables_equal_those_of_one_process(alone: list[Path], full: Path, lora: Path, step: str) -> None:
    """Row by row, although the ranks computed them in turns. float32 in other batches; measured: 3.1e-5 at most."""
    assert off(read_table(full, step), read_table(alone[0], step)) <= 1e-4
    assert off(read_table(lora, step), read_table(alone[1], step)) <= 1e-4


def test_both_steps_begin_at_ln_2(full: Path, lora: Path) -> None:
    """Over all ranks."""
    for out in (full, lora):
        losses = [step["first_loss"] for step in read_report(out)["steps"]]
        assert losses == pytest.approx([0.693147, 0.693147], abs=1e-4)


def test_another_first_model_makes_another_table(full: Path, retrained: Path) -> None:
    """TRL's own cache of log-probs takes all models under ZeRO-3 for one: a table must not come from there."""
    assert off(read_table(full, "step-1"), read_table(retrained, "step-1")) == 0.0
    assert mean_off(read_table(full, "step-2"), read_table(retrained, "step-2")) > 1  # measured: 2.3 nats


def test_tables_are_those_of_the_exported_models(host: Host, full: Path, retrained: Path, lora: Path) -> None:
    """The log-probs under the sharded M_1 are those of the directory `step-1` when it is loaded as any model."""
    prepared = full.parent / "prepared"
    expected = expect_table(host, prepared, 32, *(out / "step-1" for out in (full, retrained, lora)))
    for out, table in zip((full, retrained, lora), expected, strict=True):
        assert off(read_table(out, "step-2"), table) <= 1e-4  # measured: 3.1e-5


def test_rows_that_do_not_share_out_evenly(
    host: Host, model: Path, folder: Path, two_ranks: dict[str, Any], tmp_path: Path
) -> None:
    """25 and 7 rows over two ranks with 2 each: in the last round of D_1, whose rows are of one length and make 13
    batches packed or padded, one rank has a row and the other none; of the 2 held-out rows, it never has any.

    No run has seen these rows before, so that nothing comes from a cache of the host's libraries either.
    """
    sets = [even_set(tmp_path / "d1.jsonl", 25, 3), intel_set(tmp_path / "d2.jsonl", 7, 4)]
    tests = {"test_datasets": [even_set(tmp_path / "few.jsonl", 2, 5)], "val_set_size": None}
    config = base_config(model, sets, tmp_path, **FULL | two_ranks, **tests)
    out = run_sdpo(host, config, ranks=2)
    assert read_report(out)["heldout"]["num_rows"] == [2]
    (base,) = expect_table(host, tmp_path / "prepared", 25, model)
    (first,) = expect_table(host, tmp_path / "prepared", 7, out / "step-1")
    assert off(read_table(out, "step-1"), base) <= 1e-4  # measured: 3.1e-5
    assert off(read_table(out, "step-2"), first) <= 1e-4  # measured: 1.5e-5
    assert [step["num_optimizer_steps"] for step in read_report(out)["steps"]] == [13, 4]


def test_the_hosts_own_zero3_config_is_taken(
    host: Host, model: Path, two_sets: list[Config], folder: Path, two_ranks: dict[str, Any]
) -> None:
    """Axolotl's ZeRO-3 configs spell the gather key in DeepSpeed's newer way, without `stage3_`."""
    names = {"stage3_gather_16bit_weights_on_model_save": None, "gather_16bit_weights_on_model_save": True}
    own = write_zero3(folder / "host-zero3.json", **names)
    config = base_config(
        model, two_sets, folder / "host-zero3", **FULL | two_ranks | {"deepspeed": str(own), "max_steps": 1}
    )
    out = run_sdpo(host, config, ranks=2)
    assert host.python("integration_tests.harness.probes:load_ok", out / "step-2")
