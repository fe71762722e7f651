"""Comet: one experiment, online or offline."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo_plugin.host.loggers.logger import Logger, Rows, Value


class Comet(Logger):
    """The experiment that `comet_*` names."""

    name = "comet"

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Go on in the experiment of the earlier process, unless the user names one."""
        return {"COMET_EXPERIMENT_KEY": os.environ.get("COMET_EXPERIMENT_KEY") or kept["key"]} if kept else {}

    def identity(self) -> dict[str, str]:
        """The experiment's key."""
        return {"key": str(self.callback._experiment.get_key())}

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As parameters."""
        self.callback._experiment.log_parameters(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """As a table among the assets."""
        cells = [list(row) for row in rows]
        self.callback._experiment.log_table(f"{name}/{update}.csv", tabular_data=cells, headers=list(columns))

    def image(self, name: str, path: Path, update: int) -> None:
        """As an image."""
        self.callback._experiment.log_image(str(path), name=name, step=update)
