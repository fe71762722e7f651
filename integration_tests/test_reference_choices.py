"""`reference:` and `policy_init:` on the real host, against runs of the host that mean the same."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, lora_config, write_config
from integration_tests.harness.env import ROOT
from integration_tests.harness.expected_log_probs import expect_table, off, read_table
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.models import make_model
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config
from integration_tests.harness.zero3 import write_zero3

SGD = {"optimizer": "sgd", "learning_rate": 1.0e-2}
LORA = {"optimizer": "sgd", "learning_rate": 0.2}
BASE_TWICE = {"policy_init": "base", "reference": "base"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def other_model(host: Host, folder: Path) -> Path:
    """Another model with the same tokenizer."""
    return make_model(host, folder / "other", seed=5)


@pytest.fixture(scope="module")
def runs(host: Host, model: Path, other_model: Path, two_sets: list[Config], folder: Path) -> dict[str, Path]:
    """The runs to compare; plain names are one process, "2 ranks" is ZeRO-3, "2 whole" two ranks without it."""
    heldout = {"val_set_size": 0.25, "eval_strategy": "epoch"}
    whole = {"micro_batch_size": 2}
    two_ranks = {"deepspeed": str(write_zero3(folder / "zero3.json")), **whole}
    full: dict[str, tuple[Any, dict[str, Any]]] = {
        "base": ({"reference": "base"}, SGD | heldout),
        "copy of base": ({"reference": str(model)}, SGD | heldout),
        "other": ({"reference": str(other_model)}, SGD),
        "init base": ({"policy_init": "base"}, SGD),
        "init and reference base": (BASE_TWICE, SGD),
        "other, 2 ranks": ({"reference": str(other_model)}, SGD | two_ranks),
        "init base, 2 ranks": ({"policy_init": "base"}, SGD | two_ranks),
        "init base, 2 whole": ({"policy_init": "base"}, SGD | whole),
    }
    lora: dict[str, tuple[Any, dict[str, Any]]] = {
        "lora init base": ({"policy_init": "base"}, LORA),
        "lora init and reference base": (BASE_TWICE, LORA),
        "lora init base, 2 ranks": ({"policy_init": "base"}, LORA | two_ranks),
        "lora init base, 2 whole": ({"policy_init": "base"}, LORA | whole),
    }

    def run(name: str) -> Path:
        make, (block, settings) = (base_config, full[name]) if name in full else (lora_config, lora[name])
        config = make(model, two_sets, folder / name.replace(", ", "-").replace(" ", "-"), **settings)
        out = Path(config["output_dir"])
        path = write_config(out.parent / "config.yaml", sdpo_config(config, sdpo=block))
        result = host.train(path, ranks=2 if ", 2 " in name else 1).check()
        (out.parent / "log").write_text(result.log(0), encoding="utf-8")
        return out

    alone = [name for name in (*full, *lora) if ", 2 " not in name]
    done = dict(zip(alone, at_once(*[lambda name=name: run(name) for name in alone]), strict=True))
    return done | {name: run(name) for name in (*full, *lora) if name not in done}


@pytest.fixture(scope="module")
def plain(host: Host, model: Path, two_sets: list[Config], folder: Path) -> dict[str, Path]:
    """`rl: dpo` runs of the unmodified host on one set each."""

    def run(name: str, config: Config) -> Path:
        host.train(write_config(folder / name / "config.yaml", config)).check()
        return Path(config["output_dir"])

    made = {
        "D_1": base_config(model, two_sets[:1], folder / "plain-1", **SGD),
        "D_2": base_config(model, two_sets[1:], folder / "plain-2", **SGD),
        "lora D_2": lora_config(model, two_sets[1:], folder / "plain-lora-2", **LORA),
    }
    return {name: run(f"plain {name}".replace(" ", "-"), config) for name, config in made.items()}


def first_losses(out: Path) -> list[float]:
    """Loss of the first batch of each step, before the first update."""
    return [step["first_loss"] for step in read_report(out)["steps"]]


def test_a_copy_of_the_base_as_reference_is_reference_base(runs: dict[str, Path]) -> None:
    """The same numbers from a model that was loaded for it: bit by bit, held-out evaluations included."""
    assert apart(runs["base"], runs["copy of base"]) == 0.0
    one, other = read_report(runs["base"]), read_report(runs["copy of base"])
    assert first_losses(runs["base"]) == first_losses(runs["copy of base"])
    assert one["heldout"] == other["heldout"]


def test_one_step_with_reference_base_is_plain_dpo(
    host: Host, model: Path, two_sets: list[Config], folder: Path, plain: dict[str, Path]
) -> None:
    """T = 1: M_0 is the base either way. 3e-8 was measured with SGD."""
    config = base_config(model, [], folder / "one", **SGD)
    block = {"reference": "base", "steps": [{"datasets": two_sets[:1]}]}
    assert apart(run_sdpo(host, sdpo_config(config, datasets=None, sdpo=block)), plain["D_1"]) <= 1e-6


def test_pre_dpo(host: Host, model: Path, two_sets: list[Config], folder: Path) -> None:
    """arXiv 2504.15843, the same data twice: plain DPO, then from the base again, held to what that has made of it."""
    config = base_config(model, [two_sets[0]] * 2, folder / "pre-dpo", **SGD, num_epochs=3)
    recipe = yaml.safe_load((ROOT / "example_configs" / "pre-dpo.yaml").read_text(encoding="utf-8"))
    assert recipe["datasets"][0] == recipe["datasets"][1]
    out = run_sdpo(host, sdpo_config(config, sdpo=recipe["sdpo"]))
    by_hand = {**config, "datasets": two_sets[:1], "precompute_ref_log_probs": True}
    first, second = ({**by_hand, "output_dir": str(folder / f"by-hand-{n}" / "out")} for n in (1, 2))
    host.train(write_config(folder / "by-hand-1" / "config.yaml", first)).check()
    path = write_config(folder / "by-hand-2" / "config.yaml", second)
    host.python("integration_tests.harness.guided:train_held_to", path, first["output_dir"])
    assert apart(out / "step-1", Path(first["output_dir"])) <= 1e-6
    assert apart(out, Path(second["output_dir"])) <= 1e-6
    assert apart(out, out / "step-1") > 5e-5  # measured: 9.6e-5, after the same 18 updates on the same rows


def test_starting_from_base_again_is_a_run_of_its_own(runs: dict[str, Path], plain: dict[str, Path]) -> None:
    """With reference and start both the base, M_2 is plain DPO on D_2: nothing of step 1 is left."""
    assert apart(runs["init and reference base"], plain["D_2"]) <= 1e-6


def test_an_adapter_starts_as_it_was_initialised(runs: dict[str, Path], plain: dict[str, Path]) -> None:
    """The same for LoRA, both drawn from the same seed. 1e-6 leaves room for rounding of the reference."""
    assert apart(runs["lora init and reference base"], plain["lora D_2"]) <= 1e-6


@pytest.mark.parametrize("name", ["init base", "lora init base"])
def test_starting_from_base_has_a_higher_first_loss(runs: dict[str, Path], name: str) -> None:
    """§3.5 of the paper: policy M_0 and reference M_1 differ where step 2 begins; the ln 2 gate does not apply."""
    first, second = first_losses(runs[name])
    assert first == pytest.approx(math.log(2), abs=1e-4)
    assert second > math.log(2) + 1e-3


@pytest.mark.parametrize("name", ["init base", "lora init base"])
@pytest.mark.parametrize("ranks", ["2 ranks", "2 whole"])
def test_two_ranks_restart_as_one_process_does(runs: dict[str, Path], name: str, ranks: str) -> None:
    """Under ZeRO-3 every rank puts back the shard it owns, else rank 0 what it kept. 6e-8 was measured with SGD."""
    assert apart(runs[name], runs[f"{name}, {ranks}"]) <= 1e-6


def kept_bytes(out: Path) -> list[int]:
    """The bytes that each rank uses for the copy of M_0, from the log."""
    (line,) = re.findall(r"bytes on each rank: ([\d, ]+)$", (out.parent / "log").read_text(), re.MULTILINE)
    return [int(size.replace(",", "")) for size in line.split(", ")]


def test_all_ranks_together_keep_one_copy_of_the_base(host: Host, model: Path, runs: dict[str, Path]) -> None:
    """Rank 0 alone where every rank has the whole model; under ZeRO-3 each its shard, padded to a common size."""
    size = 4 * host.python("integration_tests.harness.probes:summary", model)["values"]
    adapter = 4 * host.python("integration_tests.harness.probes:summary", runs["lora init base"])["values"]
    assert kept_bytes(runs["init base"]) == [size]
    assert kept_bytes(runs["init base, 2 whole"]) == [size, 0]
    assert kept_bytes(runs["lora init base, 2 whole"]) == [adapter, 0]
    assert kept_bytes(runs["init base, 2 ranks"]) == [size // 2, size // 2]
    assert kept_bytes(runs["lora init base, 2 ranks"]) == [adapter, 0]  # sharded by the first engine, later


def test_two_ranks_load_the_reference_as_one_process_does(runs: dict[str, Path]) -> None:
    """And the final model is saved whole after a second model was loaded and released. 6e-8 was measured."""
    assert apart(runs["other"], runs["other, 2 ranks"]) <= 1e-6


def test_tables_are_those_of_the_reference(
    host: Host, model: Path, other_model: Path, runs: dict[str, Path], folder: Path
) -> None:
    """D_2 (32 rows) under the external model, and under the base, each computed by an independent program."""
    (expected,) = expect_table(host, folder / "other" / "prepared", 32, other_model)
    assert off(read_table(runs["other"], "step-2"), expected) < 1e-3
    (base,) = expect_table(host, folder / "init-and-reference-base" / "prepared", 32, model)
    assert off(read_table(runs["init and reference base"], "step-2"), base) < 1e-3


def test_reference_base_fills_the_row_of_m_0(runs: dict[str, Path]) -> None:
    """γ of every D_t under M_0; an external reference has no row, and its γ stands with its step."""
    assert None not in read_report(runs["base"])["train"]["gamma"][0]
    report = read_report(runs["other"])
    matrix = report["train"]["gamma"]
    assert [step["gamma_ref"]["mean"] for step in report["steps"]] != [matrix[0][0], matrix[0][1]]
    assert all(isinstance(step["gamma_ref"]["mean"], float) for step in report["steps"])


def test_the_reference_is_released_before_training(
    host: Host, model: Path, other_model: Path, two_sets: list[Config], folder: Path
) -> None:
    """Two loads, and one model alive after every update."""
    config = base_config(model, two_sets, folder / "census", **SGD | {"max_steps": 2})
    path = write_config(folder / "census" / "config.yaml", sdpo_config(config, sdpo={"reference": str(other_model)}))
    measured = host.python("integration_tests.harness.memory:train_and_measure", path)
    assert (measured["loads"], measured["live"]) == (2, [1] * 4)


def test_another_tokenizer_is_refused(host: Host, model: Path, two_sets: list[Config], folder: Path) -> None:
    """The message names both models and the first token that differs."""
    stranger = make_model(host, folder / "stranger", vocab=300)
    config = sdpo_config(base_config(model, two_sets, folder / "refused"), sdpo={"reference": str(stranger)})
    result = host.train(write_config(folder / "refused" / "config.yaml", config))
    refused(result, folder / "refused" / "out", str(stranger), "another tokenizer", "tokens differ", str(model))


def test_a_reference_that_does_not_exist_is_refused(
    host: Host, model: Path, two_sets: list[Config], folder: Path
) -> None:
    """Before data or base model are loaded."""
    config = sdpo_config(base_config(model, two_sets, folder / "absent"), sdpo={"reference": "./no-such-model"})
    result = host.train(write_config(folder / "absent" / "config.yaml", config))
    refused(result, folder / "absent" / "out", "sdpo.reference: './no-such-model'", "previous, base, or the path")


@pytest.mark.parametrize(("loss", "expected"), [("ipo", 25.0), ("hinge", 1.0), ("robust", math.log(2))])
def test_other_losses_go_through_the_gate_at_their_own_value(
    host: Host, model: Path, two_sets: list[Config], folder: Path, loss: str, expected: float
) -> None:
    """β 0.1: IPO begins at 1 / (4 β²) = 25, hinge at 1, robust at ln 2; per step, beside sigmoid."""
    steps = [{"datasets": two_sets[:1]}, {"datasets": two_sets[1:], "dpo_loss_type": [loss]}]
    config = base_config(model, [], folder / loss, max_steps=2, rl_beta=0.1)
    losses = first_losses(run_sdpo(host, sdpo_config(config, datasets=None, sdpo={"steps": steps})))
    assert losses == [pytest.approx(math.log(2), abs=1e-4), pytest.approx(expected, rel=1e-3)]
