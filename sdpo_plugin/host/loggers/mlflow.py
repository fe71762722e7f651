"""MLflow: one run, in whatever store `mlflow_tracking_uri` names."""

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sdpo_plugin.host.loggers.logger import Chain, Logger, Rows, Value

NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_\-. :/]")  # of a metric; transformers' callback writes "_" for it


class MLflow(Logger):
    """The run that `mlflow_run_name` names."""

    name = "mlflow"

    def __init__(self, callback: TrainerCallback, chain: Chain) -> None:
        super().__init__(callback, chain)
        self._last: dict[str, int] = {}
        self._has_parameters = False

    def args(self, args: Any) -> Any:
        """The host names the run after `wandb_name` where both are set."""
        args = copy.copy(args)
        args.run_name = self.chain.cfg.mlflow_run_name or args.run_name
        return args

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Go on in the run of the earlier process, if it is still there; its parameters, MLflow says, never change."""
        import mlflow

        if not kept or mlflow.active_run() is not None or os.environ.get("MLFLOW_RUN_ID", kept["id"]) != kept["id"]:
            return {}
        run = mlflow.MlflowClient().get_run(kept["id"])
        if run.info.lifecycle_stage != "active":
            return {}
        self._has_parameters = bool(run.data.params)
        return {"MLFLOW_RUN_ID": kept["id"]} | ({"MLFLOW_MAX_LOG_PARAMS": "0"} if self._has_parameters else {})

    def begun(self, kept: Mapping[str, str], processes: int) -> None:
        """Read how far a process that died has come: MLflow would keep its points beside the same ones of this one."""
        import mlflow

        if kept and self.identity() == kept:
            client = mlflow.MlflowClient()
            for key in client.get_run(kept["id"]).data.metrics:
                self._last[key] = max(point.step for point in client.get_metric_history(kept["id"], key))

    def identity(self) -> dict[str, str]:
        """The run's id."""
        import mlflow

        return {"id": str(mlflow.active_run().info.run_id)}

    def has(self, key: str, update: int) -> bool:
        """As the store says."""
        return self.chain.begins_at < update <= self._last.get(NOT_IN_NAMES.sub("_", key), -1)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As parameters, beside the training arguments; those that are too long for MLflow are left out."""
        import mlflow

        if not self._has_parameters:
            longest = self.callback._MAX_PARAM_VAL_LENGTH
            mlflow.log_params({key: value for key, value in values.items() if len(str(value)) <= longest})

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """As a table among the artifacts, one a point; MLflow would add to one that is there."""
        import mlflow

        file = f"{name}/{update}.json"
        client, run_id = mlflow.MlflowClient(), self.identity()["id"]
        if file not in [found.path for found in client.list_artifacts(run_id, name)]:
            cells = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
            mlflow.log_table(cells, file)

    def image(self, name: str, path: Path, update: int) -> None:
        """As a file among the artifacts."""
        import mlflow

        mlflow.log_artifact(str(path), f"{name}/{update}")

    def interrupted(self, *, failed: bool, end: Callable[[], Any]) -> None:
        """Say so: left alone, MLflow would call the run finished when the process ends."""
        import mlflow

        if self.callback._auto_end_run and mlflow.active_run() is not None:
            mlflow.end_run("FAILED" if failed else "KILLED")
