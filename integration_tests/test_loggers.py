"""Each logger's file, read back with its own library: one run for the chain, on one axis, with every key and parameter.

Step 1 has 18 rows and step 2 has 24, in batches of 4: 5 and 6 updates, 11 in all. Every second one is followed by an
evaluation, and so are the first and the last of a step.
"""

from __future__ import annotations

import itertools
import json
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.launch import Host
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config
from integration_tests.harness.zero3 import write_zero3

READ = "integration_tests.harness.loggers"
FIGURES = "integration_tests.harness.step_figures.StepFigures"
PLUGINS = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin", FIGURES]
PICTURES = ["sdpo/gamma_ref", "sdpo/matrices", "sdpo/training"]
MATRICES = [f"sdpo/models/{name}" for name in ("gamma", "reference_free_accuracy", "implicit_reward_accuracy")]
UPDATES = list(range(1, 12))
TIMES = ("runtime", "per_second")
NO_POINTS = ("step", "num_tokens", "eval_num_tokens")  # TRL counts tokens anew in each process


@dataclass(frozen=True)
class Logged:
    """Runs of one chain, which share a folder for their loggers."""

    host: Host
    folder: Path
    project: str

    @property
    def out(self) -> Path:
        """The run directory."""
        return self.folder / "out"

    def train(self, fault: str = "", **options: Any) -> Result:
        """One process of it."""
        env = self.env | {"SDPO_TEST_FAULT": fault or None}
        return self.host.train(self.folder / "config.yaml", env=env, **options)

    @property
    def env(self) -> dict[str, str | None]:
        """Nothing is sent. W&B writes to disk every 15 s by itself, and MLflow wants a database in place of files."""
        return {
            "WANDB_DIR": str(self.folder / "wandb"),
            "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.1",
            "MLFLOW_ALLOW_FILE_STORE": "true",
        }

    def tensorboard(self) -> dict[str, Any]:
        """Its scalars, of the one run there is."""
        runs = self.host.python("integration_tests.harness.events:scalars", self.folder)
        assert len(runs) == 1
        return dict(next(iter(runs.values())))

    def wandb(self) -> list[dict[str, Any]]:
        """Its offline folders, one a process."""
        found: list[dict[str, Any]] = self.host.python(f"{READ}:wandb_runs", self.folder / "wandb")
        return found

    def mlflow(self) -> dict[str, Any]:
        """The one run there is."""
        found = self.host.python(f"{READ}:mlflow_runs", f"file://{self.folder}/mlruns")
        assert len(found) == 1
        return dict(found[0])

    def trackio(self) -> dict[str, Any]:
        """The one run there is."""
        found = self.host.python(f"{READ}:trackio_runs", self.project)
        assert len(found) == 1
        return dict(found[0])


@pytest.fixture(scope="module")
def installed(host: Host) -> list[str]:
    """Loggers that the host's environment may lack."""
    found: list[str] = host.python(f"{READ}:installed", ["mlflow", "comet_ml"])
    return found


def loggers(folder: Path, project: str, installed: list[str]) -> Config:
    """The host's keys for every logger that is there."""
    keys = {"use_tensorboard": True, "wandb_project": project, "wandb_name": "named-w", "wandb_mode": "offline"}
    keys |= {"wandb_log_model": "checkpoint"}
    keys |= {"use_trackio": True, "trackio_project_name": project, "trackio_run_name": "named-t"}
    if "mlflow" in installed:
        keys |= {"mlflow_tracking_uri": f"file://{folder}/mlruns", "mlflow_experiment_name": project}
        keys |= {"mlflow_run_name": "named-m"}
    if "comet_ml" in installed:
        keys |= {"comet_project_name": project, "comet_online": False}
        keys |= {"comet_experiment_config": {"offline_directory": str(folder / "comet")}}
    return keys


def chain(host: Host, model: Path, sets: list[Config], folder: Path, **overrides: Any) -> Logged:
    """A chain that evaluates and saves after every second update."""
    (folder / "wandb").mkdir(parents=True)
    settings = {"val_set_size": 0.25, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    plain = base_config(model, sets, folder, **settings, save_steps=2, auto_resume_from_checkpoints=True)
    write_config(folder / "config.yaml", sdpo_config(plain, plugins=PLUGINS, **overrides))
    return Logged(host, folder, overrides.get("trackio_project_name", ""))


@pytest.fixture(scope="module")
def logged(
    host: Host, model: Path, two_sets: list[Config], installed: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Logged:
    """A chain that all loggers have seen."""
    folder = tmp_path_factory.mktemp("logged")
    made = chain(host, model, two_sets, folder, **loggers(folder, "whole", installed))
    made.train().check()
    return made


def history(out: Path) -> list[tuple[int, str, float]]:
    """(update of the chain, key, value) of all that the trainer has logged up to its last checkpoints."""
    found = []
    for before, checkpoint in ((0, "step-1/checkpoint-5"), (5, "step-2/checkpoint-6")):
        state = json.loads((out / checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for entry in state["log_history"]:
            found += [(before + entry["step"], key, value) for key, value in entry.items() if key not in NO_POINTS]
    assert {"loss", "grad_norm", "rewards/margins", "eval_loss", "sdpo/step"} <= {key for _, key, _ in found}
    return found


def rewritten(key: str) -> str:
    """As transformers writes it for most loggers."""
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"


def updates_of(points: list[list[float]]) -> list[int]:
    return [int(step) for step, _ in points]


def gammas(out: Path) -> list[float]:
    """Mean γ_ref of each step."""
    return [step["gamma_ref"]["mean"] for step in read_report(out)["steps"]]


def looked_at(out: Path) -> dict[str, list[tuple[int, float]]]:
    """γ and distance from M_0 of each model on each set, by the name of the metric, with the updates it has had."""
    report, found = read_report(out), {}
    for kind in ("train", "heldout"):
        for column, name in enumerate(report[kind]["sets"]):
            for measure in ("gamma", "kl_to_base"):
                values = [(at, row[column]) for at, row in zip((0, 5, 11), report[kind][measure], strict=True)]
                found[f"sdpo/{kind}/{name}/{measure}"] = [point for point in values if point[1] is not None]
    assert [len(points) for points in found.values()] == [3, 2] * 4
    return found


def require_whole(rows: list[dict[str, Any]], out: Path) -> None:
    """Rows with an axis of their own hold every point of the trainer's, in order, and γ_ref where each step begins."""
    axis = [row["train/global_step"] for row in rows]
    assert axis == sorted(axis)
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == UPDATES
    for update, key, value in history(out):
        name = rewritten(key)
        assert any(
            row[name] == pytest.approx(value) for row in rows if row["train/global_step"] == update and name in row
        )
    for key, points in looked_at(out).items():
        found = [(row["train/global_step"], row[f"train/{key}"]) for row in rows if f"train/{key}" in row]
        assert found == [(at, pytest.approx(value)) for at, value in points]
    found = [(row["train/global_step"], row["train/sdpo/gamma_ref"]) for row in rows if "train/sdpo/gamma_ref" in row]
    assert found == [(0, pytest.approx(gammas(out)[0])), (5, pytest.approx(gammas(out)[1]))]
    for row in rows:
        if "train/sdpo/global_step" in row:
            assert row["train/sdpo/global_step"] == row["train/global_step"]
            assert row["train/sdpo/step"] == (1 if row["train/global_step"] <= 5 else 2) or row[
                "train/global_step"
            ] in (0, 5)


def test_tensorboard(logged: Logged) -> None:
    """One directory, below the run's own."""
    points = logged.tensorboard()
    assert [path.parents[1] for path in logged.folder.rglob("events*")] == [logged.out / "runs"]
    assert updates_of(points["train/loss"]) == UPDATES
    for update, key, value in history(logged.out):
        # TensorBoard keeps 32 bits
        assert [update, pytest.approx(value, rel=1e-6)] in points[rewritten(key)]
    assert points["train/sdpo/gamma_ref"] == [
        [0, pytest.approx(gammas(logged.out)[0])],
        [5, pytest.approx(gammas(logged.out)[1])],
    ]
    assert updates_of(points["train/sdpo/global_step"]) == [value for _, value in points["train/sdpo/global_step"]]
    tags = next(iter(logged.host.python("integration_tests.harness.events:tags", logged.folder).values()))
    assert sorted(tags["images"]) == sorted(["sdpo/picture", *PICTURES])
    texts = ("args", "model_config", "sdpo/steps", "sdpo/gamma", *MATRICES)
    assert {f"{name}/text_summary" for name in texts} == set(tags["tensors"])
    for key, value in looked_at(logged.out).items():
        assert points[f"train/{key}"] == [[at, pytest.approx(number, rel=1e-6)] for at, number in value]


def test_wandb(logged: Logged) -> None:
    """One offline run; its own count of rows has no gap."""
    (run,) = logged.wandb()
    assert (run["name"], run["project"]) == ("named-w", "whole")
    assert [row["_step"] for row in run["rows"]] == list(range(len(run["rows"])))
    require_whole(run["rows"], logged.out)
    assert len(run["config"]) > 200
    assert run["config"]["output_dir"] == str(logged.out)
    assert [run["config"][f"sdpo/step_{step}/num_rows"] for step in (1, 2)] == [18, 24]
    assert len([name for name in run["artifacts"] if name.startswith("config-")]) == 1
    # M_0's architecture, checkpoints after updates 2, 4, 5 of step 1 and 2, 4, 6 of step 2, and M_2
    assert run["artifacts"].count("model-named-w") == 1 + 6 + 1
    tables = [row for row in run["rows"] if "sdpo/gamma/nrows" in row]
    assert [(row["train/global_step"], row["sdpo/gamma/nrows"]) for row in tables] == [(5, 2), (11, 2)]
    for key in ("sdpo/picture/path", "train/sdpo/own"):
        assert [row["train/global_step"] for row in run["rows"] if key in row] == [5, 11]


def test_mlflow(logged: Logged, installed: list[str]) -> None:
    """One run, of the name that is MLflow's own."""
    if "mlflow" not in installed:
        pytest.skip("mlflow is not installed: pip install mlflow-skinny")
    run = logged.mlflow()
    assert (run["name"], run["experiment"], run["status"]) == ("named-m", "whole", "FINISHED")
    assert updates_of(run["points"]["loss"]) == UPDATES
    for update, key, value in history(logged.out):
        assert [update, pytest.approx(value)] in run["points"][key]
    assert run["points"]["sdpo/gamma_ref"] == [
        [0, pytest.approx(gammas(logged.out)[0])],
        [5, pytest.approx(gammas(logged.out)[1])],
    ]
    assert updates_of(run["points"]["sdpo/own"]) == [5, 11]
    assert len(run["parameters"]) > 200
    expected = {
        "output_dir": str(logged.out),
        "max_steps": "11",
        "sdpo/step_1/num_rows": "18",
        "sdpo/step_2/num_rows": "24",
    }
    assert expected.items() <= run["parameters"].items()
    for key, value in looked_at(logged.out).items():
        assert run["points"][key] == [[at, pytest.approx(number)] for at, number in value]
    ours = [file for file in run["artifacts"] if file.startswith("sdpo/")]
    assert [file for file in ours if file.startswith("sdpo/models")] == sorted(
        f"{name}/{at}.json" for name in MATRICES for at in (0, 5, 11)
    )
    drawn = [f"{name}/11/{name.removeprefix('sdpo/')}.png" for name in PICTURES]
    assert {*drawn} <= {*ours}
    assert [file for file in ours if not file.startswith("sdpo/models") and file not in drawn] == [
        *("sdpo/gamma/11.json", "sdpo/gamma/5.json", "sdpo/picture/11/picture.png", "sdpo/picture/5/picture.png"),
    ]


def test_trackio(logged: Logged) -> None:
    """One run of the project and name that the host's keys say. Axolotl 0.19's Trackio ends the host's own runs."""
    run = logged.trackio()
    assert run["name"] == "named-t"
    assert [row["step"] for row in run["rows"]] == list(range(len(run["rows"])))
    require_whole(run["rows"], logged.out)
    assert run["config"]["output_dir"] == str(logged.out)
    assert [run["config"][f"sdpo/step_{step}/num_rows"] for step in (1, 2)] == [18, 24]
    tables = [row for row in run["rows"] if "sdpo/gamma" in row]
    assert [row["train/global_step"] for row in tables] == [5, 11]
    assert tables[0]["sdpo/gamma"]["_value"] == [{"model": "M_0", "γ": 1.5}, {"model": "M_1", "γ": None}]
    assert [row["train/global_step"] for row in run["rows"] if "sdpo/picture" in row] == [5, 11]


def test_comet(logged: Logged, installed: list[str]) -> None:
    """One offline experiment. By itself Comet copies what TensorBoard and MLflow are given beside it."""
    if "comet_ml" not in installed:
        pytest.skip("comet_ml is not installed: pip install comet-ml")
    (experiment,) = logged.host.python(f"{READ}:comet_experiments", logged.folder / "comet")
    logged_at = updates_of(experiment["points"]["train/loss"])
    assert (logged_at, sorted(set(logged_at))) == (sorted(logged_at), UPDATES)
    for update, key, value in history(logged.out):
        assert [update, pytest.approx(value)] in experiment["points"][rewritten(key)]
    assert set(updates_of(experiment["points"]["train/sdpo/gamma_ref"])) == {0, 5}
    assert experiment["parameters"]["sdpo/step_2/num_rows"] == "24"
    assert experiment["parameters"]["args|max_steps"] == "11"
    assert {"axolotl-config", "sdpo/gamma/5.csv", "sdpo/gamma/11.csv", "sdpo/picture"} <= set(experiment["files"])


def test_callbacks_of_others_see_each_step(logged: Logged) -> None:
    """A training for each step, with its own count, as without loggers."""
    seen = json.loads((logged.out / "seen.json").read_text(encoding="utf-8"))
    begins = [at for at, what in enumerate(seen) if what == "begin"]
    assert [what for what in seen if isinstance(what, str)] == ["begin", "end", "begin", "end"]
    for points, updates in ((seen[begins[0] : begins[1]], 5), (seen[begins[1] :], 6)):
        logs = [point for point in points if not isinstance(point, str)]
        assert {total for _, total, _ in logs} == {updates}
        assert [step for step, _, is_loss in logs if is_loss] == list(range(1, updates + 1))


def test_loggers_change_nothing(
    host: Host, model: Path, two_sets: list[Config], logged: Logged, tmp_path: Path
) -> None:
    """Every value that the trainer logs is that of a run without loggers, to the bit."""
    silent = chain(host, model, two_sets, tmp_path, dataset_prepared_path=str(logged.folder / "prepared"))
    silent.train().check()
    assert not (silent.out / "sdpo" / "loggers.json").exists()
    assert not (silent.out / "runs").exists()
    values = [[point for point in history(run.out) if not point[1].endswith(TIMES)] for run in (silent, logged)]
    assert values[0] == values[1]


def test_killed_failed_stopped_and_resumed(
    host: Host, model: Path, two_sets: list[Config], logged: Logged, installed: list[str], tmp_path: Path
) -> None:
    """The axis goes on in the same runs: what was logged after the last checkpoint is there once, with no hole.

    All in step 2, with checkpoints after every second update: killed in update 4 of it, failed in update 6, stopped in
    the evaluation after update 6, finished.
    """
    keys = loggers(tmp_path, "died", installed)
    run = chain(host, model, two_sets, tmp_path, **keys, dataset_prepared_path=str(logged.folder / "prepared"))
    first = host.start(
        ["train", str(tmp_path / "config.yaml"), "--launcher", "python"],
        tmp_path,
        env=run.env | {"SDPO_TEST_FAULT": "hang:2:4:0"},
    )
    assert first.wait_for(partial(first.says, "'sdpo/global_step': 8,"))
    time.sleep(5)  # W&B, MLflow and Trackio write in threads of their own
    first.kill(signal.SIGKILL)
    first.wait()
    if "mlflow" in installed:
        assert updates_of(run.mlflow()["points"]["loss"]) == UPDATES[:8]
    statuses = []
    for fault, code in (("raise:1:6:0", 1), ("signal:1:0", 143), ("", 0)):
        result = run.train(fault)
        assert result.returncode == code, result.log_text[-3000:]
        statuses += [run.mlflow()["status"]] if "mlflow" in installed else []
    assert "resuming step 2 from" in result.log_text
    require_gone_on(run, logged, statuses)


def require_gone_on(run: Logged, whole: Logged, statuses: list[str]) -> None:
    """Each logger holds what it holds of a chain that nobody has disturbed."""
    losses = whole.tensorboard()["train/loss"]
    points = run.tensorboard()
    assert points["train/loss"] == losses
    assert updates_of(points["train/sdpo/gamma_ref"]) == [0, 5]
    assert points["eval/loss"] == whole.tensorboard()["eval/loss"]
    rows = run.trackio()["rows"]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    require_whole(rows, run.out)
    folders = run.wandb()
    assert len({folder["id"] for folder in folders}) == 1
    assert len(folders) == 4
    counted = [row["_step"] for folder in folders for row in folder["rows"]]
    assert all(earlier < later for earlier, later in itertools.pairwise(counted))
    logged = [row["train/global_step"] for folder in folders for row in folder["rows"] if "train/loss" in row]
    assert logged == [*range(1, 9), *range(8, 11), *range(10, 12)]  # W&B keeps what was logged ahead of a checkpoint
    if statuses:
        assert statuses == ["FAILED", "KILLED", "FINISHED"]
        assert run.mlflow()["points"]["loss"] == whole.mlflow()["points"]["loss"]
        assert updates_of(run.mlflow()["points"]["eval_loss"]) == updates_of(whole.mlflow()["points"]["eval_loss"])
        assert len(run.mlflow()["parameters"]) == len(whole.mlflow()["parameters"])


def test_failing_logger_and_damaged_record(
    host: Host, model: Path, two_sets: list[Config], logged: Logged, tmp_path: Path
) -> None:
    """Neither ends a run: the point is missing, and it is said once."""
    prepared = str(logged.folder / "prepared")
    run = chain(host, model, two_sets, tmp_path, use_tensorboard=True, dataset_prepared_path=prepared)
    died = host.train(
        tmp_path / "config.yaml", env=run.env | {"SDPO_TEST_FULL_DISK": "1", "SDPO_TEST_FAULT": "raise:2:4:0"}
    )
    assert "KeyError: 'a fault of the test'" in died.log_text
    said = [line for line in died.log_text.splitlines() if "tensorboard: on_log failed" in line]
    assert len(said) == 1
    assert "(OSError: [Errno 28] No space left on device). The training goes on; " in said[0]
    (run.out / "sdpo" / "loggers.json").write_text("{", encoding="utf-8")
    result = run.train().check()
    assert f"{run.out}/sdpo/loggers.json cannot be read (" in result.log_text
    folders = host.python("integration_tests.harness.events:scalars", tmp_path)
    assert sorted(len(points["train/loss"]) for points in folders.values()) == [4, 7]  # 1 … 8 without 3; 8 … 11


def test_one_of_two_ranks_logs(
    host: Host, model: Path, two_sets: list[Config], logged: Logged, installed: list[str], tmp_path: Path
) -> None:
    """Under ZeRO-3; rank 1 leaves no trace in any of them."""
    keys = loggers(tmp_path, "ranks", installed) | {"deepspeed": str(write_zero3(tmp_path / "zero3.json"))}
    run = chain(host, model, two_sets, tmp_path, **keys, micro_batch_size=2)
    run.train(ranks=2).check()
    assert updates_of(run.tensorboard()["train/loss"]) == UPDATES
    assert len(list(run.out.rglob("events*"))) == 1
    (only,) = run.wandb()
    assert [row["train/global_step"] for row in only["rows"] if "train/loss" in row] == UPDATES
    assert [row["train/global_step"] for row in run.trackio()["rows"] if "train/loss" in row] == UPDATES
    if "mlflow" in installed:
        assert updates_of(run.mlflow()["points"]["loss"]) == UPDATES
