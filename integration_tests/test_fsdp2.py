"""FSDP2 on two ranks: the same models and tables as in one process, step after step.

What `test_zero3.py` says of rounding holds here too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, chat_set, even_set, intel_set, lora_config, write_config
from integration_tests.harness.deaths import live, outcome
from integration_tests.harness.expected_log_probs import expect_table, off, read_table
from integration_tests.harness.fsdp2 import LARGE, fsdp2
from integration_tests.harness.launch import Host
from integration_tests.harness.models import make_model
from integration_tests.harness.sdpo import PACKED, PADDED, read_report, run_sdpo, sdpo_config

MAKE = {"full": base_config, "lora": lora_config}
SGD: dict[str, dict[str, Any]] = {
    "full": {"optimizer": "sgd", "learning_rate": 1.0e-2, "num_epochs": 2},
    "lora": {"optimizer": "sgd", "learning_rate": 0.2, "num_epochs": 2},
}
SETTINGS = {"plain": fsdp2(), "large": fsdp2(**LARGE)}
KINDS = pytest.mark.parametrize("kind", ["full", "lora"])
SET_AS = pytest.mark.parametrize("settings", ["plain", "large"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def alone(host: Host, model: Path, two_sets: list[Config], folder: Path) -> dict[str, Path]:
    """In one process, with padded rows: full fine-tuning, LoRA."""
    configs = [MAKE[kind](model, two_sets, folder / f"{kind}-alone", **SGD[kind], sdpo=PADDED) for kind in MAKE]
    return dict(zip(MAKE, at_once(*(lambda c=c: run_sdpo(host, c) for c in configs)), strict=True))


@pytest.fixture(scope="module")
def sharded(host: Host, model: Path, two_sets: list[Config], folder: Path) -> dict[tuple[str, str], Path]:
    """On two ranks, each kind with each of the settings."""
    return {
        (kind, name): run_sdpo(
            host,
            MAKE[kind](
                model, two_sets, folder / f"{kind}-{name}", **SGD[kind] | settings, micro_batch_size=2, sdpo=PACKED
            ),
            ranks=2,
        )
        for kind in MAKE
        for name, settings in SETTINGS.items()
    }


@pytest.fixture(scope="module")
def small_sets(folder: Path) -> list[Config]:
    """Three updates and four."""
    return [chat_set(folder / "small-1.jsonl", 12, 1), intel_set(folder / "small-2.jsonl", 16, 2)]


@SET_AS
@KINDS
def test_equals_one_process(
    alone: dict[str, Path], sharded: dict[tuple[str, str], Path], kind: str, settings: str
) -> None:
    """M_1, M_2 and the final model, or their adapters from the same random one."""
    # Measured: 6.0e-8 and 1.2e-7, where the second step moved the weights by 3.9e-3, and the adapter by 0.13.
    out = sharded[kind, settings]
    for step in ("step-1", "step-2", ""):
        assert apart(out / step, alone[kind] / step) <= 1e-6
    assert apart(out / "step-1", out) > 1e-3


def test_a_chain_that_starts_from_an_adapter(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, alone: dict[str, Path]
) -> None:
    """`lora_model_dir`: from M_1 D_2 makes what the chain at one go has made of it in one process."""
    first = alone["lora"] / "step-1"
    config = lora_config(
        model, [], tmp_path, **SGD["lora"] | SETTINGS["plain"], micro_batch_size=2, lora_model_dir=str(first)
    )
    block = {"steps": [{"datasets": two_sets[1:]}]}
    out = run_sdpo(host, sdpo_config(config, datasets=None, sdpo=block), ranks=2)
    assert apart(out / "sdpo" / "start", first) == 0.0
    assert apart(out, alone["lora"]) <= 1e-6
    assert apart(out, first) > 1e-2


@SET_AS
@KINDS
def test_both_steps_begin_at_ln_2(sharded: dict[tuple[str, str], Path], kind: str, settings: str) -> None:
    """Over all ranks."""
    losses = [step["first_loss"] for step in read_report(sharded[kind, settings])["steps"]]
    assert losses == pytest.approx([0.693147, 0.693147], abs=1e-4)


@KINDS
def test_tables_equal_those_of_one_process(
    alone: dict[str, Path], sharded: dict[tuple[str, str], Path], kind: str
) -> None:
    """Row by row. float32 in other batches; measured: 3.1e-5 at most."""
    for name in SETTINGS:
        for step in ("step-1", "step-2"):
            assert off(read_table(sharded[kind, name], step), read_table(alone[kind], step)) <= 1e-4


def test_tables_are_those_of_the_exported_models(
    host: Host, folder: Path, sharded: dict[tuple[str, str], Path]
) -> None:
    """The log-probs under the sharded M_1 are those of the directory `step-1` when it is loaded as any model."""
    for (kind, name), out in sharded.items():
        (expected,) = expect_table(host, folder / f"{kind}-{name}" / "prepared", 32, out / "step-1")
        assert off(read_table(out, "step-2"), expected) <= 1e-4


def test_rows_that_do_not_share_out_evenly(host: Host, model: Path, tmp_path: Path) -> None:
    """25 and 7 rows over two ranks with 2 each: in the last round of D_1, whose rows are of one length and make 13
    batches packed or padded, one rank has a row and the other none."""
    sets = [even_set(tmp_path / "d1.jsonl", 25, 3), intel_set(tmp_path / "d2.jsonl", 7, 4)]
    config = base_config(model, sets, tmp_path, **SGD["full"] | fsdp2(), micro_batch_size=2)
    out = run_sdpo(host, config, ranks=2)
    (base,) = expect_table(host, tmp_path / "prepared", 25, model)
    (first,) = expect_table(host, tmp_path / "prepared", 7, out / "step-1")
    assert off(read_table(out, "step-1"), base) <= 1e-4
    assert off(read_table(out, "step-2"), first) <= 1e-4


@KINDS
def test_every_step_from_the_base_model(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path, kind: str
) -> None:
    """The copy of M_0 is kept in shards."""
    block = {"policy_init": "base"}
    one = sdpo_config(MAKE[kind](model, two_sets, tmp_path / "one", **SGD[kind]), sdpo=block)
    two = MAKE[kind](model, two_sets, tmp_path / "two", **SGD[kind] | SETTINGS["large"], micro_batch_size=2)
    alone, out = run_sdpo(host, one), run_sdpo(host, sdpo_config(two, sdpo=block), ranks=2)
    for step in ("step-1", "step-2"):
        assert apart(out / step, alone / step) <= 1e-6


def test_a_second_model_gives_the_reference(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """It is sharded as the policy is."""
    block = {"reference": str(make_model(host, tmp_path / "reference", seed=7))}
    one = sdpo_config(base_config(model, two_sets, tmp_path / "one", **SGD["full"]), sdpo=block)
    two = base_config(model, two_sets, tmp_path / "two", **SGD["full"] | SETTINGS["large"], micro_batch_size=2)
    alone, out = run_sdpo(host, one), run_sdpo(host, sdpo_config(two, sdpo=block), ranks=2)
    for step in ("step-1", "step-2"):
        assert off(read_table(out, step), read_table(alone, step)) <= 1e-4
        assert apart(out / step, alone / step) <= 1e-6


@pytest.mark.parametrize(("kind", "settings"), [("full", "plain"), ("lora", "large")])
def test_killed_and_resumed(
    host: Host, model: Path, small_sets: list[Config], tmp_path: Path, kind: str, settings: str
) -> None:
    """In each step from a checkpoint: the same bits, with AdamW."""
    saves = {"save_strategy": "steps", "save_steps": 1, "micro_batch_size": 2}
    life = live(host, MAKE[kind](model, small_sets, tmp_path, **saves | SETTINGS[settings]), ranks=2)
    updates = [number for number, event in enumerate(life.events, 1) if event == "train"]
    expected = outcome(host, life.out)
    for event in (updates[2], updates[-1]):
        config = life.die(tmp_path / str(event), event)
        assert outcome(host, life.resume(config)) == expected


@KINDS
def test_killed_and_resumed_with_a_copy_of_the_base_model(
    host: Host, model: Path, small_sets: list[Config], tmp_path: Path, kind: str
) -> None:
    """M_1 is read beside M_0 for its log-probs, or the adapter M_0 from the run's directory."""
    made = MAKE[kind](model, small_sets, tmp_path, **SETTINGS["large"], micro_batch_size=2)
    life = live(host, made, ranks=2, sdpo={"policy_init": "base"})
    passes = [number for number, event in enumerate(life.events, 1) if event == "pass"]
    config = life.die(tmp_path / "killed", passes[-1])
    assert outcome(host, life.resume(config)) == outcome(host, life.out)


@KINDS
def test_the_best_model_is_exported(host: Host, model: Path, two_sets: list[Config], tmp_path: Path, kind: str) -> None:
    """Each step stops `patience` evaluations after its best checkpoint, and that is M_t (as in test_best_model)."""
    stopping = {
        **{"early_stopping_patience": 2, "val_set_size": 0.25, "num_epochs": 6, "micro_batch_size": 2},
        **{"eval_steps": 1, "save_steps": 1, "save_strategy": None},
        "learning_rate": {"full": 2.0e-2, "lora": 0.3}[kind],
    }
    out = run_sdpo(host, MAKE[kind](model, two_sets, tmp_path, **stopping | fsdp2()), ranks=2)
    for step in read_report(out)["steps"]:
        last = out / step["name"] / f"checkpoint-{step['num_optimizer_steps']}"
        best = Path(json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"])
        assert best != last
        assert apart(out / step["name"], best) == 0.0
        assert apart(out / step["name"], last) > 0.0


@pytest.mark.parametrize(
    ("overrides", "env", "said"),
    [
        ({"torch_compile": True}, {}, "torch_compile: true is not supported with rl: sdpo and fsdp_config"),
        (
            {},
            {"ACCELERATE_DYNAMO_BACKEND": "inductor"},
            "accelerate would compile the model (dynamo_backend: INDUCTOR)",
        ),
        (fsdp2(state_dict_type="SHARDED_STATE_DICT"), {}, "set fsdp_config.final_state_dict_type: FULL_STATE_DICT"),
    ],
)
def test_refused(
    host: Host,
    model: Path,
    two_sets: list[Config],
    tmp_path: Path,
    overrides: dict[str, Any],
    env: dict[str, str],
    said: str,
) -> None:
    """Before anything is trained."""
    config = sdpo_config(base_config(model, two_sets, tmp_path, **fsdp2() | overrides, micro_batch_size=2))
    result = host.train(write_config(tmp_path / "config.yaml", config), ranks=2, env=env)
    assert result.returncode == 1
    assert said in result.log_text
