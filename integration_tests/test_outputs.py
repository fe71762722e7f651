"""The output of a run: its files, their contents, and the curves on a dashboard."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.deaths import PLUGINS
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config
from integration_tests.harness.stored_weights import weights_digest
from sdpo_plugin.report.pictures import CAPTIONS

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
FULL = {"config.json", "generation_config.json", "model.safetensors"} | TOKENIZER
HOST = {"README.md", "debug.log"}
EXPORT = {"training_args.bin", "README.md", "sdpo_seal.json"}
SDPO = {
    "sdpo_seal.json",
    *(f"sdpo/{name}" for name in ("plan.json", "ledger.json", "lock", "report.json", "report.md", "report.html")),
    "sdpo/data_checks.json",
    *(f"sdpo/history/step-{index}.json" for index in (1, 2)),
    *(f"sdpo/{name}" for name in CAPTIONS if importlib.util.find_spec("matplotlib")),
}
TABLES = {f"sdpo/reference/step-{index}.safetensors" for index in (1, 2)}
SAMPLES = {f"sdpo/samples/M_{model}-step-{step}.safetensors" for model, step in ((0, 2), (1, 1), (2, 1), (2, 2))}
HELDOUT = {f"sdpo/heldout/M_{model}-{column}.safetensors" for model in range(3) for column in (1, 2)}


@dataclass(frozen=True)
class Trained:
    """A finished run and its log."""

    out: Path
    log: str

    def files(self) -> set[str]:
        """Every file but those inside checkpoints and TensorBoard runs, relative to the output directory, and but the
        progress of a step that takes long."""
        paths = (path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())
        hidden = ("checkpoint-", "runs", "progress.json")
        return {str(path) for path in paths if not any(part.startswith(hidden) for part in path.parts)}


@pytest.fixture(scope="module")
def rich(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Held-out rows, checkpoints and TensorBoard; a learning rate at which a step's margins are far from 0."""
    folder = tmp_path_factory.mktemp("rich")
    config = base_config(
        model,
        two_sets,
        folder,
        learning_rate=1.0e-2,
        val_set_size=0.25,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=3,
        logging_first_step=True,
        use_tensorboard=True,
    )
    result = host.train(write_config(folder / "config.yaml", sdpo_config(config))).check()
    return Trained(folder / "out", result.log_text)


def test_the_files_of_a_run(rich: Trained) -> None:
    """These and no others; TRL writes its card beside the checkpoints."""
    steps = {f"step-{index}/{name}" for index in (1, 2) for name in FULL | EXPORT}
    assert rich.files() == FULL | HOST | SDPO | TABLES | SAMPLES | HELDOUT | steps | {"sdpo/loggers.json"}


def test_checkpoints_stand_in_their_step(rich: Trained) -> None:
    """18 and 24 rows in batches of 4, saved at the end of the epoch."""
    found = {str(path.relative_to(rich.out)) for path in rich.out.rglob("checkpoint-*")}
    assert found == {"step-1/checkpoint-5", "step-2/checkpoint-6"}


def test_plan_and_ledger(rich: Trained, model: Path, two_sets: list[Config]) -> None:
    """The plan says what was to be done, and the ledger that it was."""
    plan = json.loads((rich.out / "sdpo" / "plan.json").read_text())
    ledger = json.loads((rich.out / "sdpo" / "ledger.json").read_text())
    assert plan["base_model"] == str(model)
    assert [(s["name"], s["num_rows"], s["num_dropped"], s["num_heldout"]) for s in plan["steps"]] == [
        ("step-1", 18, 2, 6),
        ("step-2", 24, 0, 8),
    ]
    assert [s["sources"] for s in plan["steps"]] == [[f"{entry['path']}:train"] for entry in two_sets]
    assert [(s["reference"], s["policy_init"]) for s in plan["steps"]] == [("M_0", "M_0"), ("M_1", "M_1")]
    lives = [{key: life[key] for key in ("began", "steps")} for life in ledger["lives"]]
    assert [life["steps"] for life in lives] == [["step-1", "step-2"]]
    assert {"schema_version": plan["schema_version"], **ledger["plan"], "lives": lives} == plan
    assert ledger["finished"]
    assert [s["state"] for s in ledger["records"]] == ["exported", "exported"]


def test_report(rich: Trained) -> None:
    """Every field is there, with values where they were computed."""
    report = read_report(rich.out)
    assert report["schema_version"] == 4
    assert report["models"] == ["M_0", "M_1", "M_2"]
    for index, step in enumerate(report["steps"], 1):
        assert (step["index"], step["model_dir"]) == (index, f"step-{index}")
        assert set(step["gamma_ref"]) == {"mean", "median", "q05", "q25", "q75", "q95", "per_token_mean"}
        assert step["first_loss"] == pytest.approx(0.6931, abs=1e-3)
        assert step["final_loss"] < step["first_loss"]
        assert step["refresh_seconds"] is None
        assert min(value for key, value in step.items() if key.endswith("_seconds") and key != "refresh_seconds") > 0
        assert step["beta"] == 0.1  # the host's
    for kind in ("train", "heldout"):
        for name in ("gamma", "reference_free_accuracy", "chosen_log_prob_per_token"):
            assert all(value is not None for row in report[kind][name] for value in row)
        for name in ("implicit_reward_accuracy", "chosen_log_ratio", "kl_to_base"):
            assert [[value is not None for value in row] for row in report[kind][name]] == [[False] * 2] + [
                [True] * 2
            ] * 2
    markdown = (rich.out / "sdpo" / "report.md").read_text()
    assert all(word in markdown for word in ("finished", "M_1 step-1", "M_2 step-2", "0.693"))


def test_the_chain_is_one_tensorboard_run(rich: Trained, host: Host) -> None:
    """One directory, whose axis counts over the whole chain: 5 updates, then 6, logged at 1, 3, 5 and 1, 3, 6."""
    runs = host.python("integration_tests.harness.events:scalars", rich.out)
    assert [name.split("/")[0] for name in runs] == ["runs"]
    (run,) = runs.values()
    assert [point[0] for point in run["train/loss"]] == [1, 3, 6, 8, 11]
    counted = run["train/sdpo/global_step"]
    assert [step for step, _ in counted] == [value for _, value in counted] == sorted(step for step, _ in counted)
    assert (counted[0][0], counted[-1][0]) == (0, 5 + 6)
    steps = [value for _, value in run["train/sdpo/step"]]
    assert (steps, set(steps)) == (sorted(steps), {0, 1, 2})  # 0: M_0 is looked at before step 1


def test_curves_of_the_report_are_what_was_logged(rich: Trained, host: Host) -> None:
    """5 and 6 updates, logged first and at every third; within a step they count from its start."""
    (run,) = host.python("integration_tests.harness.events:scalars", rich.out).values()
    first, second = (step["curve"] for step in read_report(rich.out)["steps"])
    assert (first["update"], second["update"]) == ([1, 3], [1, 3, 6])
    for name, key in (
        ("loss", "loss"),
        ("reward_margin", "rewards/margins"),
        ("reward_accuracy", "rewards/accuracies"),
    ):
        logged = dict(run[f"train/{key}"])
        assert [*first[name], *second[name]] == pytest.approx([logged[update] for update in (1, 3, 6, 8, 11)], abs=1e-5)


def test_report_is_what_its_schema_says(rich: Trained) -> None:
    schema = json.loads((files("sdpo_plugin.report") / "report.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(read_report(rich.out))
    assert "<h2>Models on held-out sets</h2>" in (rich.out / "sdpo" / "report.html").read_text(encoding="utf-8")


def test_metrics_begin_afresh_with_each_step(rich: Trained, host: Host) -> None:
    """The first logged point is of one batch before any update: nothing of the step before is averaged into it."""
    (run,) = host.python("integration_tests.harness.events:scalars", rich.out).values()
    margins, losses = dict(run["train/rewards/margins"]), dict(run["train/loss"])
    for first, last in ((1, 3), (6, 11)):
        assert margins[first] == pytest.approx(0.0, abs=1e-4)
        assert abs(margins[last]) > 1e-2
        assert losses[first] == pytest.approx(0.6931, abs=1e-4)


def test_export_last_keeps_the_final_model_only(
    host: Host, model: Path, two_sets: list[Config], rich: Trained, tmp_path: Path
) -> None:
    """`export_steps: last` leaves no model of a step, and the final one has the same bits."""
    made: dict[str, Any] = {}
    for name in ("all", "last"):
        config = base_config(model, two_sets, tmp_path / name, dataset_prepared_path=str(rich.out.parent / "prepared"))
        made[name] = run_sdpo(host, sdpo_config(config, sdpo={"export_steps": name}))
    assert Trained(made["last"], "").files() == FULL | HOST | SDPO | TABLES | SAMPLES
    assert not list(made["last"].glob("step-*"))
    assert [step["model_dir"] for step in read_report(made["last"])["steps"]] == [None, None]
    digests = [weights_digest(out) for out in made.values()]
    assert digests[0] == digests[1]


def test_where_callbacks_of_the_host_look_and_write(
    host: Host, model: Path, two_sets: list[Config], rich: Trained, tmp_path: Path
) -> None:
    """`dynamic_checkpoint` takes its file where the host says, in output_dir; a profiler, which writes into the
    directory of its step, finds it there before the step has saved anything."""
    trigger = tmp_path / "out" / "axolotl_checkpoint.save"
    trigger.parent.mkdir()
    trigger.touch()
    config = base_config(
        model,
        two_sets,
        tmp_path,
        dataset_prepared_path=str(rich.out.parent / "prepared"),
        save_strategy="no",
        dynamic_checkpoint={"enabled": True, "check_interval": 2},
    )
    made = sdpo_config(config, plugins=PLUGINS, sdpo={"export_steps": "last"})
    log = host.train(write_config(tmp_path / "config.yaml", made), env={"SDPO_TEST_FAULT": "profile:"}).check().log_text
    assert f"touch {trigger}" in log
    assert not trigger.exists()
    found = {str(path.relative_to(trigger.parent)) for path in trigger.parent.glob("step-*/*")}
    assert found == {"step-1/profile", "step-1/checkpoint-2", "step-2/profile"}


def test_curve_that_cannot_be_kept_costs_itself(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """A file stands where the folder would be: the steps are trained, exported and reported all the same."""
    place = tmp_path / "out" / "sdpo" / "history"
    place.parent.mkdir(parents=True)
    place.touch()
    config = sdpo_config(base_config(model, two_sets, tmp_path))
    log = host.train(write_config(tmp_path / "config.yaml", config)).check().log_text
    for name in ("step-1", "step-2"):
        assert f"the report will have no curve of step {name}: {place}/{name}.json could not be written: " in log
    report = read_report(tmp_path / "out")
    assert (report["finished"], [step["curve"] for step in report["steps"]]) == (True, [None, None])
