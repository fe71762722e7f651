"""What loggers hold of a run, read back with their own libraries; each function runs in a fork."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BLOCK = 32768  # of LevelDB's log format, in which W&B writes
Points = dict[str, list[list[float]]]


def installed(names: list[str]) -> list[str]:
    """Those of the packages that the host's environment has."""
    return [name for name in names if find_spec(name)]


def wandb_runs(root: str) -> list[dict[str, Any]]:
    """The offline runs below a folder, in the order in which they began: id, name, config, rows of the history."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for path in sorted(Path(root).rglob("run-*.wandb"), key=lambda path: path.parent.name):
        found: dict[str, Any] = {"config": {}, "rows": [], "artifacts": [], "folder": path.parent.name}
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                found |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            if record.HasField("config") or record.HasField("run"):
                updates = record.config.update if record.HasField("config") else record.run.config.update
                found["config"] |= {(u.key or "/".join(u.nested_key)): json.loads(u.value_json) for u in updates}
            if record.HasField("history"):
                row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                found["rows"].append(row)
            if record.HasField("artifact"):
                found["artifacts"].append(record.artifact.name)
        runs.append(found)
    return runs


def _records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: behind 7 bytes of header blocks of chunks, each with checksum, length and kind."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # the rest of a block, too short for a chunk
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if not kind:
            at += BLOCK - at % BLOCK
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def mlflow_runs(uri: str) -> list[dict[str, Any]]:
    """Every run of every experiment: name, status, parameters, [step, value] of every point by key, artifacts."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiments = client.search_experiments()
    runs = client.search_runs([experiment.experiment_id for experiment in experiments], order_by=["start_time"])
    names = {experiment.experiment_id: experiment.name for experiment in experiments}
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "experiment": names[run.info.experiment_id],
            "status": run.info.status,
            "parameters": dict(run.data.params),
            "points": {
                key: [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "artifacts": _artifacts(client, run.info.run_id, ""),
        }
        for run in runs
    ]


def _artifacts(client: Any, run_id: str, folder: str) -> list[str]:
    found = client.list_artifacts(run_id, folder or None)
    below = [_artifacts(client, run_id, file.path) for file in found if file.is_dir]
    return sorted([file.path for file in found if not file.is_dir] + [path for paths in below for path in paths])


def comet_experiments(folder: str) -> list[dict[str, Any]]:
    """Every offline experiment: [step, value] of every point by key, parameters, names of files."""
    found = []
    for path in sorted(Path(folder).glob("*.zip")):
        made: dict[str, Any] = {"points": {}, "parameters": {}, "files": []}
        with zipfile.ZipFile(path) as archive:
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        for payload in (message["payload"] for message in messages):
            if "metric" in payload:
                metric = payload["metric"]
                made["points"].setdefault(metric["metricName"], []).append(
                    [metric["step"], float(metric["metricValue"])]
                )
            if "param" in payload:
                made["parameters"][payload["param"]["paramName"]] = str(payload["param"]["paramValue"])
            if "upload_type" in payload:
                about = payload["additional_params"]
                made["files"].append(about.get("fileName") or about["figName"])
        found.append(made)
    return found


def trackio_runs(project: str) -> list[dict[str, Any]]:
    """Every run of a project: name, config, rows."""
    from trackio.sqlite_storage import SQLiteStorage

    return [
        {
            "name": name,
            "config": SQLiteStorage.get_run_config(project, name),
            "rows": [
                {key: value for key, value in row.items() if key != "timestamp"}
                for row in SQLiteStorage.get_logs(project, name)
            ],
        }
        for name in SQLiteStorage.get_runs(project)
    ]
