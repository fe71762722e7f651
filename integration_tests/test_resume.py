"""Resume, and what it refuses: options, drift, damage, and two runs in one directory.

One run is killed in the middle of its second step; every test takes a copy of what it left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, chat_set, intel_set, write_config
from integration_tests.harness.deaths import Life, live, train
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages
from integration_tests.harness.models import make_model
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report
from sdpo_plugin.run_dir.ledger import SCHEMA_VERSION, Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import write_stored

STEP = {"num_epochs": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def life(host: Host, model: Path, folder: Path) -> Life:
    """An uninterrupted run over three steps of 12, 16 and 12 rows, each with a name and settings of its own."""
    base = shutil.copytree(model, folder / "base")
    sets = [
        chat_set(folder / "d1.jsonl", 12, 1),
        intel_set(folder / "d2.jsonl", 16, 2),
        chat_set(folder / "d3.jsonl", 12, 3),
    ]
    steps = [{"name": name, "datasets": [entry]} for name, entry in zip(("easy", "middle", "hard"), sets, strict=True)]
    return live(host, base_config(base, sets, folder / "whole", **STEP), datasets=None, sdpo={"steps": steps})


@pytest.fixture(scope="module")
def dead(life: Life, folder: Path) -> Path:
    """The directory of the same run, killed after the second checkpoint of step 2."""
    event = next(i for i, what in enumerate(life.events, 1) if "middle/checkpoint-4/.sdpo_seal" in what)
    update = next(i for i, what in enumerate(life.events[event:], event + 1) if what == "train")
    config = life.die(folder / "dead", update)
    return config.parent / "out"


@dataclass(frozen=True)
class Copy:
    """A copy of the dead run, to be resumed under a changed config or after damage."""

    life: Life
    out: Path

    def resume(self, **changes: Any) -> Result:
        """Train with some keys changed; None takes one out."""
        config = {**self.life.config, "output_dir": str(self.out), **changes}
        made = {key: value for key, value in config.items() if value is not None}
        return train(self.life.host, write_config(self.out.parent / "config.yaml", made))

    def steps(self, index: int, **changes: Any) -> dict[str, Any]:
        """The `sdpo:` block with changes in step ``index`` (from 1)."""
        steps = [dict(step) for step in self.life.config["sdpo"]["steps"]]
        steps[index - 1] |= changes
        return {"sdpo": {"steps": steps}}

    def ends_right(self) -> None:
        """The final model has the bits of the uninterrupted run."""
        assert apart(self.out, self.life.out) == 0.0


@pytest.fixture
def copy(life: Life, dead: Path, tmp_path: Path) -> Copy:
    """A copy of the dead run, in another directory."""
    return Copy(life, Path(shutil.copytree(dead, tmp_path / "moved" / "out")))


def snapshot(out: Path) -> dict[str, bytes]:
    """Every file but the host's own log and what it writes there before any plugin is asked."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("debug.log", "lock")
    }


def refused(result: Result, *parts: str) -> None:
    """The run ended with one message of ours that has these parts."""
    said = "\n".join(messages(result))
    assert result.returncode == 1, result.log_text[-3000:]
    assert "Traceback" not in result.log_text
    assert "'loss':" not in result.log_text
    for part in parts:
        assert part in said, f"{part!r} is not in {said!r}"


# --- options ---


def test_resumes_from_the_newest_whole_checkpoint_in_a_moved_directory(copy: Copy) -> None:
    """The base model is not loaded, and the report is that of a whole run."""
    result = copy.resume(logging_steps=3, save_steps=5, dataloader_num_workers=0)
    assert f"resuming step 2 from {copy.out}/middle/checkpoint-4" in result.check().log_text
    copy.ends_right()
    assert Ledger.load(RunDir(copy.out).ledger).saved


def test_true_means_the_run_in_the_output_directory(copy: Copy) -> None:
    copy.resume(auto_resume_from_checkpoints=None, resume_from_checkpoint=True).check()
    copy.ends_right()


def test_a_checkpoint_by_its_path(copy: Copy) -> None:
    """An older one than the newest."""
    asked = copy.out / "middle" / "checkpoint-2"
    result = copy.resume(resume_from_checkpoint=str(asked)).check()
    assert f"resuming step 2 from {asked}" in result.log_text
    copy.ends_right()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        pytest.param("easy/checkpoint-2", "it belongs to another step ('easy' instead of 'middle')", id="other-step"),
        pytest.param("middle/checkpoint-99", "does not exist; set the path of a checkpoint", id="missing"),
    ],
)
def test_a_path_that_cannot_be_resumed_from(copy: Copy, asked: str, why: str) -> None:
    before = snapshot(copy.out)
    refused(
        copy.resume(resume_from_checkpoint=str(copy.out / asked)), f"resume_from_checkpoint: '{copy.out / asked}'", why
    )
    assert snapshot(copy.out) == before


def test_finished_steps_and_no_option(copy: Copy) -> None:
    """Nothing is touched, and the message says what can be done."""
    before = snapshot(copy.out)
    result = copy.resume(auto_resume_from_checkpoints=None)
    refused(result, "holds finished steps of an earlier run (easy)", "set auto_resume_from_checkpoints: true to resume")
    assert snapshot(copy.out) == before


def test_nothing_to_resume(life: Life, tmp_path: Path) -> None:
    empty = Copy(life, tmp_path / "out")
    result = empty.resume(resume_from_checkpoint=True, auto_resume_from_checkpoints=None)
    refused(
        result, "holds no run to resume", "set auto_resume_from_checkpoints: true, which begins where there is none"
    )


def test_a_finished_run_is_left_alone(life: Life) -> None:
    """A restart loop ends: status 0, nothing loaded, nothing written."""
    before = snapshot(life.out)
    result = train(life.host, life.out.parent / "config.yaml").check()
    assert f"this run is finished: {life.out} holds its final model. Nothing is left to do." in result.log_text
    assert "Loading weights" not in result.log_text
    assert snapshot(life.out) == before


FINISHED: dict[str, tuple[Callable[[Copy], dict[str, Any]], str]] = {
    "learning rate": (lambda copy: {"learning_rate": 2.0e-3}, "learning_rate is 0.002, and it was 0.001"),
    "β of the last step": (
        lambda copy: copy.steps(3, rl_beta=0.3),
        "step hard cannot be resumed: since it began",
    ),
    "another reference": (
        lambda copy: {"sdpo": {**copy.life.config["sdpo"], "reference": "base"}},
        "sdpo: reference is 'base', and it was 'previous'",
    ),
    "another base model": (lambda copy: other_base(copy), "base_model: content of the model is "),
    "other rows": (lambda copy: other_rows(copy), "d3.jsonl:train) is 12 rows with digest "),
    "one more step, and an earlier one renamed": (
        lambda copy: {
            "sdpo": {"steps": [*copy.steps(1, name="first")["sdpo"]["steps"], {"name": "more", "datasets": d1(copy)}]}
        },
        "name of step 1 is 'first', and it was 'easy'",
    ),
    "one more step, and other settings of an earlier one": (
        lambda copy: {
            "sdpo": {"steps": [*copy.steps(2, rl_beta=0.3)["sdpo"]["steps"], {"name": "more", "datasets": d1(copy)}]}
        },
        "rl_beta is 0.3, and it was 0.1",
    ),
    "a step less": (
        lambda copy: {"sdpo": {"steps": copy.steps(1)["sdpo"]["steps"][:2]}},
        "name of step 3 is not set, and it was 'hard'",
    ),
    "entries instead of steps": (
        lambda copy: {"sdpo": None, "datasets": [*d1(copy), *d1(copy)]},
        "name of step 1 is 'step-1', and it was 'easy'",
    ),
}


def d1(copy: Copy) -> list[Config]:
    """`datasets:` of the first step."""
    return list(copy.steps(1)["sdpo"]["steps"][0]["datasets"])


@pytest.fixture
def finished(life: Life, tmp_path: Path) -> Copy:
    """A copy of the uninterrupted run, in another directory."""
    return Copy(life, Path(shutil.copytree(life.out, tmp_path / "finished" / "out")))


@pytest.mark.parametrize("what", FINISHED)
def test_a_finished_run_refuses_a_changed_config(finished: Copy, what: str) -> None:
    """The config asks for another run than the finished one: refused before a model is loaded, nothing is touched."""
    change, said = FINISHED[what]
    changes, before = change(finished), snapshot(finished.out)
    result = finished.resume(**changes)
    refused(result, said)
    assert "Loading weights" not in result.log_text
    assert snapshot(finished.out) == before


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_finished_run_whose_final_model_is_not_whole_writes_it_again(finished: Copy, damage: str) -> None:
    final = finished.out / "model.safetensors"
    final.unlink() if damage == "missing" else cut(final)
    result = finished.resume().check()
    assert f"the final model in {finished.out} is not whole (model.safetensors " in result.log_text
    assert f"it is written again from {finished.out}/hard" in result.log_text
    finished.ends_right()
    assert "Nothing is left to do." in finished.resume().check().log_text


# --- drift ---


def other_rows(copy: Copy) -> dict[str, Any]:
    """D_3 with one word changed."""
    entry = dict(copy.life.config["sdpo"]["steps"][2]["datasets"][0])
    text = Path(entry["path"]).read_text(encoding="utf-8")
    path = copy.out.parent / "d3.jsonl"
    path.write_text(text.replace("river", "forest", 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    return copy.steps(3, datasets=[{**entry, "path": str(path)}])


def other_base(copy: Copy) -> dict[str, Any]:
    """A base model of the same shape and name of directory, trained otherwise."""
    other = make_model(copy.life.host, copy.out.parent / "base", seed=1)
    return {"base_model": str(other)}


DRIFT: dict[str, tuple[Callable[[Copy], dict[str, Any]], tuple[str, ...]]] = {
    "override of a begun step": (
        lambda copy: copy.steps(2, rl_beta=0.3),
        ("step middle cannot be resumed", "rl_beta is 0.3, and it was 0.1"),
    ),
    "base model": (other_base, ("base_model: content of the model is ",)),
    "template": (lambda copy: {"chat_template": "chatml"}, ("tokenizer: chat template is ",)),
}


@pytest.mark.parametrize("what", DRIFT)
def test_what_may_not_change_is_named(copy: Copy, what: str) -> None:
    """And nothing is trained, nothing of the run is touched. tests/test_drift.py has every other key."""
    change, parts = DRIFT[what]
    before = snapshot(copy.out / "sdpo")
    refused(copy.resume(**change(copy)), *parts)
    assert snapshot(copy.out / "sdpo") == before


def test_a_step_that_has_not_begun_may_be_given_other_settings(copy: Copy) -> None:
    """It is trained with them, and plan and ledger say so."""
    copy.resume(**copy.steps(3, learning_rate=5.0e-3)).check()
    assert apart(copy.out / "middle", copy.life.out / "middle") == 0.0
    assert apart(copy.out, copy.life.out) > 1e-3
    ledger = Ledger.load(RunDir(copy.out).ledger)
    assert [record.settings["learning_rate"] for record in ledger.records] == [1.0e-3, 1.0e-3, 5.0e-3]
    plan = json.loads((copy.out / "sdpo" / "plan.json").read_text(encoding="utf-8"))
    assert plan["steps"][2]["settings"] == ledger.plan.steps[2].settings == {"learning_rate": 5.0e-3}


def test_the_first_remedy_for_a_step_that_ran_out_of_memory(copy: Copy) -> None:
    """Gradient checkpointing, as the docs say: refused by name where the step has a checkpoint, else it ends as it
    would have."""
    refused(copy.resume(gradient_checkpointing=True), "gradient_checkpointing is True, and it was False")
    for checkpoint in (copy.out / "middle").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "resuming step 2 from M_1, next: train" in copy.resume(gradient_checkpointing=True).check().log_text
    assert apart(copy.out, copy.life.out) <= 1e-6


def test_data_and_base_model_may_be_moved(copy: Copy) -> None:
    """Their content counts, and not their path."""
    entry = dict(copy.life.config["sdpo"]["steps"][2]["datasets"][0])
    moved = shutil.copy(entry["path"], copy.out.parent / "elsewhere.jsonl")
    base = shutil.copytree(copy.life.config["base_model"], copy.out.parent / "elsewhere")
    copy.resume(**copy.steps(3, datasets=[{**entry, "path": str(moved)}]), base_model=str(base)).check()
    copy.ends_right()


def test_another_version_of_the_host_is_a_warning(copy: Copy) -> None:
    path = RunDir(copy.out).ledger
    ledger = Ledger.load(path)
    versions = {**ledger.identity["versions"], "trl": "1.9.7"}
    write_stored(path, replace(ledger, identity={**ledger.identity, "versions": versions}), SCHEMA_VERSION)
    result = copy.resume().check()
    assert f"other software than it began with: trl is {version('trl')!r}, and it was '1.9.7'" in result.log_text
    copy.ends_right()


# --- damage ---


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("model.safetensors", flip, id="flipped"),
        pytest.param("optimizer.pt", cut, id="cut"),
        pytest.param("sdpo_seal.json", Path.unlink, id="unsealed"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(copy: Copy, file: str, damage: Callable[[Path], None]) -> None:
    """For the one before it; the end is the same. tests/test_sealed.py damages every file in every way."""
    newest = copy.out / "middle" / "checkpoint-4"
    damage(newest / file)
    result = copy.resume().check()
    assert f"{newest} is passed over: " in result.log_text
    assert f"resuming step 2 from {copy.out}/middle/checkpoint-2" in result.log_text
    copy.ends_right()


def test_a_step_without_a_whole_checkpoint_begins_again(copy: Copy) -> None:
    """From its exported M_{t-1}, against the table that it began with."""
    for checkpoint in (copy.out / "middle").glob("checkpoint-*"):
        cut(checkpoint / "optimizer.pt")
    result = copy.resume().check()
    assert "resuming step 2 from M_1, next: train" in result.log_text
    assert "log-probs of D_2 by M_1" not in result.log_text
    copy.ends_right()


DAMAGE: dict[str, tuple[str, tuple[str, ...]]] = {
    "ledger": ("sdpo/ledger.json", ("ledger.json is not a ledger of schema version 2",)),
    "table": ("sdpo/reference/middle.safetensors", ("middle.safetensors", "A step is not trained against it")),
}


@pytest.mark.parametrize("damage", [flip, cut], ids=["flipped", "cut"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_ledger_or_table_is_refused(copy: Copy, what: str, damage: Callable[[Path], None]) -> None:
    file, parts = DAMAGE[what]
    damage(copy.out / file)
    before = snapshot(copy.out / "middle")
    refused(copy.resume(), *parts)
    assert snapshot(copy.out / "middle") == before


def test_a_damaged_model_is_refused_where_it_is_needed(copy: Copy) -> None:
    """Without its checkpoints step 2 begins at M_1, and M_1 has lost a bit."""
    for checkpoint in (copy.out / "middle").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    flip(copy.out / "easy" / "model.safetensors")
    refused(
        copy.resume(), f"{copy.out}/easy is not the M_1 that this run has made", "model.safetensors has been changed"
    )


def test_what_a_run_does_not_need_may_be_deleted(copy: Copy) -> None:
    """A finished step's model, and its reference table: one line in the log, null in the report, the same end."""
    shutil.rmtree(copy.out / "easy")
    (copy.out / "sdpo/reference/easy.safetensors").unlink()
    result = copy.resume().check()
    assert f"{copy.out}/easy has been deleted: the run resumes without M_1, which it does not need" in result.log_text
    copy.ends_right()
    assert [record.kept for record in Ledger.load(RunDir(copy.out).ledger).records] == [False, True, True]
    report = read_report(copy.out)
    assert [step["model_dir"] for step in report["steps"]] == [None, "middle", "hard"]
    assert [step["gamma_ref"] is None for step in report["steps"]] == [True, False, False]
    (warning,) = report["warnings"]
    assert warning.startswith("sdpo/reference/easy.safetensors cannot be used, so its numbers are missing here: ")


def test_a_model_that_was_cut_is_refused_where_it_is_not_needed(copy: Copy) -> None:
    """Its user would not learn of it otherwise: the checkpoint of step 2 holds the policy."""
    cut(copy.out / "easy" / "model.safetensors")
    refused(
        copy.resume(),
        f"{copy.out}/easy is not the M_1 that this run has made: model.safetensors has ",
        "restore it, or delete the whole directory to resume without it.",
    )


def test_what_leads_out_of_the_run_directory_is_not_followed(copy: Copy) -> None:
    """A ledger that names another run's model as its own to remove, and a lock that is a link to a file."""
    victim = Path(shutil.copytree(copy.out / "easy", copy.out.parent / "victim" / "easy"))
    before, path = snapshot(victim), RunDir(copy.out).ledger
    ledger, whole = Ledger.load(path), path.read_bytes()
    first, *rest = ledger.plan.steps
    plan = replace(ledger.plan, steps=(replace(first, name="../victim/easy"), *rest))
    write_stored(path, replace(ledger, plan=plan).record(1, kept=False), SCHEMA_VERSION)
    refused(
        copy.resume(), "ledger.json is not a ledger of schema version 2 (plan.steps.0.name: ", "'../victim/easy' cannot"
    )
    path.write_bytes(whole)
    lock = RunDir(copy.out).lock
    lock.unlink()
    lock.symlink_to(victim / "config.json")
    refused(copy.resume(), f"{lock} is a symbolic link to {victim}/config.json", "or remove the link")
    assert snapshot(victim) == before


def test_a_table_of_another_run_is_refused(copy: Copy) -> None:
    """Whole, of the right shape, but of other rows."""
    shutil.copy(copy.out / "sdpo/reference/easy.safetensors", copy.out / "sdpo/reference/middle.safetensors")
    refused(copy.resume(), "middle.safetensors is a table of another run than the ledger vouches for")


def test_a_table_that_was_deleted_is_made_again(copy: Copy) -> None:
    """As the message about a damaged one says; the step begins again, and ends the same."""
    (copy.out / "sdpo/reference/middle.safetensors").unlink()
    result = copy.resume().check()
    assert "log-probs of D_2 by M_1" in result.log_text
    copy.ends_right()


def test_a_checkpoint_of_another_run_is_passed_over(copy: Copy, life: Life) -> None:
    """It has the same name, step and reference."""
    newest = copy.out / "middle" / "checkpoint-4"
    shutil.rmtree(newest)
    shutil.copytree(life.out / "middle" / "checkpoint-8", newest)
    result = copy.resume().check()
    assert f"{newest} is passed over: it belongs to another run" in result.log_text
    copy.ends_right()


def test_no_secret_is_written(life: Life, tmp_path: Path) -> None:
    """Not into plan, ledger, report or seals; the host's own files are the host's."""
    secrets = {
        "comet_api_key": "s3cret-1",
        "hf_use_auth_token": True,
        "mlflow_tracking_uri": "https://me:s3cret-2@host",
    }
    Copy(life, tmp_path / "out").resume(**secrets, max_steps=1, save_strategy="no", save_steps=None).check()
    for path in [*(tmp_path / "out/sdpo").rglob("*"), *(tmp_path / "out").rglob("sdpo_seal.json")]:
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


# --- two at once ---


def test_the_second_of_two_runs_is_refused(life: Life, tmp_path: Path) -> None:
    """While the first trains; it is not disturbed, and its directory is free when it is killed."""
    config = {**life.config, "output_dir": str(tmp_path / "out")}
    path = write_config(tmp_path / "config.yaml", config)
    ready = tmp_path / "out" / "easy" / "checkpoint-2"
    first = life.host.start(
        ["train", str(path), "--launcher", "python"], tmp_path, env={"SDPO_TEST_FAULT": "hang:1:4:0"}
    )
    assert first.wait_for((ready / "sdpo_seal.json").exists)
    log = tmp_path / "out" / "debug.log"
    before, text = log.stat().st_ino, log.read_bytes()
    for option in (True, None):
        result = Copy(life, tmp_path / "out").resume(auto_resume_from_checkpoints=option)
        assert log.stat().st_ino == before
        assert log.read_bytes().startswith(text)  # the first run continues to write
        refused(result, f"output_dir: '{tmp_path / 'out'}' is in use by another run (process {first.pids[0]} on ")
    assert not first.codes()
    first.kill()
    first.wait()
    again = Copy(life, tmp_path / "out")
    again.resume().check()
    again.ends_right()
