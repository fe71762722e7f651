"""Rows without finite log-probs, full disks: a clear end before anything is damaged, and a way to resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, chat_set, intel_set, lora_config, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3

RARE, ROW = "~", 9  # a character that stands in one row alone
SAVES = {"num_epochs": 1, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def sets(folder: Path) -> list[Config]:
    """Two steps of 16 rows; row 9 of the second set has the rare character in its preferred answer."""
    first, second = chat_set(folder / "d1.jsonl", 16, 1), intel_set(folder / "d2.jsonl", 16, 2)
    path = Path(second["path"])
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[ROW])
    row["chosen"] = f"{row['chosen']} {RARE}"
    lines[ROW] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [first, second]


def beginning(sets: list[Config]) -> str:
    """The system prompt and question of the row with the rare character, as far as a message shows them."""
    row = json.loads(Path(sets[1]["path"]).read_text(encoding="utf-8").splitlines()[ROW])
    return str(row["question"])


@pytest.fixture(scope="module")
def poisoned(host: Host, model: Path, folder: Path) -> tuple[Path, int]:
    """A base model in which the embedding of that character is NaN, and the character's token."""
    out = folder / "poisoned"
    return out, host.python("integration_tests.harness.models:poison", model, out, RARE)


@pytest.fixture(scope="module")
def whole(host: Host, model: Path, sets: list[Config], folder: Path) -> Path:
    """The run in which nothing goes wrong."""
    config = config_of(model, sets, folder / "whole")
    train(host, config).check()
    return config.parent / "out"


def config_of(model: Path, sets: list[Config], folder: Path, make: Any = base_config, **overrides: Any) -> Path:
    """Two steps of four updates, a checkpoint after every second."""
    plain = make(model, sets, folder, **{**SAVES, **overrides})
    return write_config(folder / "config.yaml", sdpo_config(plain, plugins=PLUGINS, auto_resume_from_checkpoints=True))


# --- numbers ---


def test_reference_that_is_no_number_names_its_row(
    host: Host, poisoned: tuple[Path, int], sets: list[Config], tmp_path: Path
) -> None:
    """Step, source and row; step 2 has not begun, step 1 is kept."""
    config = config_of(poisoned[0], sets, tmp_path, lora_config)  # the embedding is frozen
    result = train(host, config)
    said = "\n".join(messages(result))
    assert result.returncode == 1
    assert "the reference log-prob of the chosen answer is not finite in 1 rows" in said
    assert f" of D_2 (counted from 0; step step-2, source {sets[1]['path']}:train), which begins '" in said
    assert beginning(sets) in said
    assert "step 2/2" not in result.log_text
    ledger = json.loads((tmp_path / "out/sdpo/ledger.json").read_text(encoding="utf-8"))
    assert [step["state"] for step in ledger["records"]] == ["exported", "planned"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_loss_that_is_no_number_names_its_row_and_spoils_nothing(
    host: Host, model: Path, poisoned: tuple[Path, int], sets: list[Config], tmp_path: Path, ranks: int
) -> None:
    """The model goes wrong in the middle of step 2, for one row; on two ranks only one of them has it."""
    shared = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": 2} if ranks == 2 else {}
    make = lora_config if ranks == 2 else base_config  # its embedding is frozen, and no shard of an optimizer
    settings = {**shared, "save_strategy": "no", "save_steps": None, "num_epochs": 2}
    config = config_of(model, sets, tmp_path, make, **settings)
    result = train(host, config, f"poison:2:5:{poisoned[1]}", ranks)
    said = "\n".join(messages(result))
    assert result.returncode == 1
    assert "the loss of update " in said
    assert "is nan; the model is as the update before left it." in said
    assert f" of D_2 (counted from 0; step step-2, source {sets[1]['path']}:train), which begins '" in said
    assert said.count(" of D_2 ") == 1
    assert beginning(sets) in said
    assert not (tmp_path / "out/step-2/config.json").exists()
    assert all("Traceback" not in result.log(rank) for rank in range(ranks))
    train(host, config, ranks=ranks).check()
    undisturbed = config_of(model, sets, tmp_path / "undisturbed", make, **settings)
    train(host, undisturbed, ranks=ranks).check()
    # Measured: 0.0. Sums over ranks are taken in a fixed order here; another machine may round otherwise.
    assert apart(tmp_path / "out", undisturbed.parent / "out") <= (1e-6 if ranks == 2 else 0.0)


def test_weights_that_are_no_numbers_are_not_written(
    host: Host, model: Path, poisoned: tuple[Path, int], sets: list[Config], whole: Path, tmp_path: Path
) -> None:
    """Where no row shows it: the token stands in D_2, and step 1 trains. The run resumes from the checkpoint before."""
    config = config_of(model, sets, tmp_path)
    result = train(host, config, f"poison:1:3:{poisoned[1]}")
    said = "\n".join(messages(result))
    assert f"checkpoint {tmp_path}/out/step-1/checkpoint-4 is not written: 1 weights hold values that are not" in said
    assert "e.g. model.embed_tokens.weight" in said
    again = train(host, config).check()
    assert f"resuming step 1 from {tmp_path}/out/step-1/checkpoint-2" in again.log_text
    assert apart(tmp_path / "out", whole) == 0.0


# --- disks ---


def test_file_that_cannot_be_written_ends_the_run_and_loses_nothing(
    host: Host, model: Path, sets: list[Config], whole: Path, tmp_path: Path
) -> None:
    """A limit on the size of files, as a quota has it, at every size at which another file is the first to fail."""
    sizes = sorted({path.stat().st_size for path in (whole / "step-1").rglob("*") if path.is_file()})
    large = [size for size in sizes if size > 20_000]
    assert len(large) == 2  # weights, and the optimizer's state
    for limit in [size - 1 for size in large] + [large[0] // 2]:
        config = config_of(model, sets, tmp_path / str(limit))
        result = train(host, config, f"limit:{limit}")
        said = "\n".join(messages(result))
        assert result.returncode == 1, result.log_text[-2000:]
        assert "could not be written: " in said, result.log_text[-2000:]
        assert "What was on disk before is whole" in said
        train(host, config).check()
        assert apart(config.parent / "out", whole) == 0.0


def test_disk_that_is_too_small_is_refused_before_training(
    host: Host, model: Path, sets: list[Config], tmp_path: Path
) -> None:
    """Thirteen copies of a model of a tenth of a megabyte do not fit into one."""
    config = config_of(model, sets, tmp_path, save_steps=1, save_total_limit=4)
    result = train(host, config, "full:")
    said = refused(result, tmp_path / "out", "and this run writes at least", lines=9)
    assert "exported models" in said
    assert "keep fewer checkpoints (save_total_limit, save_only_model)" in said


def test_estimate_is_shown_and_true(host: Host, model: Path, sets: list[Config], tmp_path: Path) -> None:
    """It counts the files that the run leaves: exports, final model, and checkpoints with two states of AdamW."""
    result = train(host, config_of(model, sets, tmp_path)).check()
    lines = [line for line in result.log_text.splitlines() if line.startswith(("exported models", "checkpoints"))]
    assert [line.split()[-3] for line in lines] == ["2", "4"]
    assert "disk space that is still to be written" in result.log_text
    found = [path.parent for path in (tmp_path / "out").rglob("model.safetensors")]
    assert sum(path.name.startswith("checkpoint-") for path in found) == 4
    assert len(found) == 4 + 2 + 1


@pytest.mark.parametrize("path", ["file/out", "file"])
def test_output_dir_that_cannot_be_one(host: Host, model: Path, sets: list[Config], tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    config = config_of(model, sets, tmp_path, output_dir=str(tmp_path / path))
    refused(
        train(host, config), tmp_path / "nothing", f"output_dir: '{tmp_path / path}': {tmp_path / 'file'} is a file"
    )
