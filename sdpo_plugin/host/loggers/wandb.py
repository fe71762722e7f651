"""Weights & Biases: one run, online or offline."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_plugin.host.loggers.logger import Logger, Rows, Value

AXIS = "train/global_step"  # the axis that transformers' callback gives every chart
# More than any process logs. W&B counts its rows by itself, and drops one whose number is no larger than the last.
ROWS_OF_A_PROCESS = 1_000_000


class WandB(Logger):
    """The run that `wandb_*` names."""

    name = "wandb"

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Go on in the run of the earlier process; with an id of the user's own that is the same one."""
        if not kept:
            return {}
        return {"WANDB_RUN_ID": kept["id"], "WANDB_RESUME": "allow"} | {
            key: os.environ[key] for key in ("WANDB_RUN_ID", "WANDB_RESUME") if os.environ.get(key)
        }

    def begun(self, kept: Mapping[str, str], processes: int) -> None:
        """Offline no server says how many rows the run has."""
        if kept and _run().offline:
            _run().log({}, step=processes * ROWS_OF_A_PROCESS, commit=False)

    def identity(self) -> dict[str, str]:
        """The run's id."""
        return {"id": str(_run().id)}

    def parameters(self, values: Mapping[str, Value]) -> None:
        """In the run's config."""
        import wandb

        wandb.config.update(dict(values), allow_val_change=True)

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """As a table of W&B's."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        _run().log({name: table, AXIS: update})

    def image(self, name: str, path: Path, update: int) -> None:
        """As an image of W&B's."""
        import wandb

        _run().log({name: wandb.Image(str(path)), AXIS: update})


def _run() -> Any:
    import wandb

    return wandb.run
