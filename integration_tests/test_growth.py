"""A finished run grows by a step: it ends as the longer run does from the start, bit by bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, chat_set, intel_set, lora_config, write_config
from integration_tests.harness.deaths import Life, live, outcome, train
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir

HELDOUT = {"val_set_size": 0.2, "eval_strategy": "steps", "eval_steps": 3, "num_epochs": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """Four steps of 12, 16, 12 and 8 rows."""
    folder = tmp_path_factory.mktemp("growth")
    return [
        chat_set(folder / "d1.jsonl", 12, 1),
        intel_set(folder / "d2.jsonl", 16, 2),
        chat_set(folder / "d3.jsonl", 12, 3),
        chat_set(folder / "d4.jsonl", 8, 4),
    ]


def in_(folder: Path, life: Life, sets: list[Config]) -> Path:
    """The config of a run with these entries, in this folder."""
    config = {**life.config, "output_dir": str(folder / "out"), "datasets": sets}
    return write_config(folder / "config.yaml", config)


def test_full_fine_tuning(host: Host, model: Path, sets: list[Config], tmp_path: Path) -> None:
    """With held-out rows of every step, and the matrices of all models on all rows; killed once while it grows."""
    whole = live(host, base_config(model, sets[:3], tmp_path / "whole", **HELDOUT))
    expected = outcome(host, whole.out)
    short = in_(tmp_path / "short", whole, sets[:2])
    train(host, short).check()
    shutil.copytree(tmp_path / "short" / "out", tmp_path / "killed" / "out")

    notes = tmp_path / "notes"
    log = train(host, in_(tmp_path / "short", whole, sets[:3]), f"note:{notes}").check().log_text
    out = tmp_path / "short" / "out"
    assert f"the run in {out} is finished, and grows by step-3: 3 steps" in log
    assert "resuming step 3 from M_2, next: reference" in log
    assert outcome(host, out) == expected
    # Everything is asked about what step 3 has brought, and nothing about what is known.
    passes = list(dict.fromkeys(re.findall(r"log-probs of (.+? by M_\d)", log)))
    assert passes == [
        *(f"{rows} by {model}" for model in ("M_0", "M_1") for rows in ("held-out step-3", "9 rows of D_3")),
        *("D_3 by M_2", "held-out step-3 by M_2"),
        *(f"held-out step-{step} by M_3" for step in (1, 2, 3)),
        *("9 rows of D_1 by M_3", "12 rows of D_2 by M_3", "9 rows of D_3 by M_3"),
    ]
    assert Ledger.load(RunDir(out).ledger).lives[1].steps == ("step-3",)
    assert len(json.loads((out / "sdpo" / "plan.json").read_text(encoding="utf-8"))["lives"]) == 2

    events = notes.read_text(encoding="utf-8").splitlines()
    updates = [number for number, what in enumerate(events, 1) if what == "train"]
    longer = in_(tmp_path / "killed", whole, sets[:3])
    dead = train(host, longer, f"die:{updates[-1]}")
    assert dead.returncode != 0
    train(host, longer, seed=99).check()
    assert outcome(host, tmp_path / "killed" / "out") == expected
    assert "Nothing is left to do." in train(host, longer).check().log_text


def test_step_with_rows_of_another_length(host: Host, model: Path, sets: list[Config], tmp_path: Path) -> None:
    """Each model that is asked about them tries packed rows at the length that it then computes with."""
    steps = [{"datasets": [entry]} for entry in sets[:2]] + [{"datasets": [sets[2]], "sequence_len": 45}]
    config = base_config(model, [], tmp_path, max_steps=1, auto_resume_from_checkpoints=True)
    for count in (2, 3):
        made = sdpo_config(config, datasets=None, sdpo={"steps": steps[:count]})
        log = host.train(write_config(tmp_path / "config.yaml", made)).check().log_text
    assert "rows of D_3 by M_0" in log
    assert "rows of D_3 by M_1" in log
    assert "padded rows" not in log


def test_lora_of_which_only_the_last_model_is_kept(host: Host, model: Path, sets: list[Config], tmp_path: Path) -> None:
    """The run goes on from its final model, which the host overwrites; with log-probs of M_0, whose adapter is kept."""
    block = {"export_steps": "last", "reference": "base"}
    whole = live(host, lora_config(model, sets, tmp_path / "whole"), sdpo=block)
    for count in (2, 3, 4):  # it grows, and grows again; each process would draw another adapter
        train(host, in_(tmp_path / "short", whole, sets[:count]), seed=0 if count == 2 else count).check()
    out = tmp_path / "short" / "out"
    assert apart(out, whole.out) == 0.0
    ledger, expected = Ledger.load(RunDir(out).ledger), Ledger.load(RunDir(whole.out).ledger)
    assert [life.steps for life in ledger.lives] == [("step-1", "step-2"), ("step-3",), ("step-4",)]
    assert [record.kept for record in ledger.records] == [record.kept for record in expected.records] == [False] * 4
    assert ledger.tables.items() <= expected.tables.items()
    # What models that were gone when a step came would say of its rows is not known.
    assert sorted(expected.tables.keys() - ledger.tables.keys()) == [
        f"sdpo/samples/{cell}.safetensors" for cell in ("M_1-step-3", "M_1-step-4", "M_2-step-4")
    ]


def test_two_ranks(host: Host, model: Path, sets: list[Config], tmp_path: Path) -> None:
    """Under ZeRO-3 with AdamW: every rank has a part of M_2, which the second process reads, and looks at D_3 with."""
    two_ranks = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2}
    whole = live(host, base_config(model, sets[:3], tmp_path / "whole", **two_ranks), ranks=2)
    for count in (2, 3):
        log = train(host, in_(tmp_path / "short", whole, sets[:count]), ranks=2).check().log_text
    out = tmp_path / "short" / "out"
    assert f"the run in {out} is finished, and grows by step-3: 3 steps" in log
    assert "resuming step 3 from M_2, next: reference" in log
    ledger, expected = Ledger.load(RunDir(out).ledger), Ledger.load(RunDir(whole.out).ledger)
    assert [life.steps for life in ledger.lives] == [("step-1", "step-2"), ("step-3",)]
    assert (ledger.plan, ledger.finished) == (expected.plan, expected.finished)
    for step in ("step-1", "step-2", "step-3", ""):
        # Sums over ranks are taken in a fixed order here; another machine may round otherwise.
        assert apart(out / step, whole.out / step) <= 1e-6
    assert apart(out, out / "step-2") > 1e-4
