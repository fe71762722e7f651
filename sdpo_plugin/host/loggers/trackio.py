"""Trackio: one run, in the local database or in a Space."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from sdpo_plugin.host.loggers.logger import Chain, Logger, Rows, Value

LOG = logging.getLogger("axolotl.sdpo_plugin")
AXIS = "train/global_step"


class Trackio(Logger):
    """The run that `trackio_*` names.

    transformers' callback knows other settings, and a newer Trackio than Axolotl 0.19 pins (0.19.0, whose ``init`` has
    no ``bucket_id``: the callback ends the run where training begins). Goes with that release.
    """

    name = "trackio"

    def __init__(self, callback: TrainerCallback, chain: Chain) -> None:
        super().__init__(callback, chain)
        self._run_name: str | None = chain.cfg.trackio_run_name
        self._last: dict[str, int] = {}

    def args(self, args: Any) -> Any:
        """The host leaves its keys in the environment, where neither Trackio nor the callback looks for them."""
        cfg, args = self.chain.cfg, copy.copy(args)
        args.project = cfg.trackio_project_name or args.project
        args.run_name = self._run_name or args.run_name
        args.trackio_space_id = cfg.trackio_space_id or args.trackio_space_id
        return args

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Go on in the run of that name; the callback asks Trackio to."""
        self._run_name = kept.get("name", self._run_name)
        if "bucket_id" not in inspect.signature(self.callback._trackio.init).parameters:
            self.callback._trackio = _OlderTrackio(self.callback._trackio)
        return {}

    def begun(self, kept: Mapping[str, str], processes: int) -> None:
        """Read how far a process that died has come, where the database is at hand."""
        from trackio.sqlite_storage import SQLiteStorage

        if kept and self._current("space_id") is None and self.identity() == kept:
            for row in SQLiteStorage.get_logs(kept["project"], kept["name"]):
                for key in row:
                    self._last[key] = max(self._last.get(key, -1), int(row.get(AXIS, -1)))

    def identity(self) -> dict[str, str]:
        """Project and name."""
        return {"project": str(self._current("project")), "name": str(self._current("run").name)}

    def has(self, key: str, update: int) -> bool:
        """As the database says."""
        (logged_as,) = rewrite_logs({key: None})
        return self.chain.begins_at < update <= self._last.get(logged_as, -1)

    def parameters(self, values: Mapping[str, Value]) -> None:
        """In the run's config, which Trackio writes with the first point."""
        self.callback._trackio.config.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """As a table of Trackio's."""
        import pandas as pd

        trackio = self.callback._trackio
        trackio.log(
            {name: trackio.Table(dataframe=pd.DataFrame(rows, columns=list(columns), dtype=object)), AXIS: update}
        )

    def image(self, name: str, path: Path, update: int) -> None:
        """As an image of Trackio's."""
        trackio = self.callback._trackio
        trackio.log({name: trackio.Image(str(path)), AXIS: update})

    def _current(self, what: str) -> Any:
        return getattr(self.callback._trackio.context_vars, f"current_{what}").get()


class _OlderTrackio:
    """Trackio as it is, but that ``init`` leaves out what it does not know and nobody has set."""

    def __init__(self, trackio: Any) -> None:
        self._module = trackio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def init(self, **settings: Any) -> Any:
        known = inspect.signature(self._module.init).parameters
        return self._module.init(**{key: value for key, value in settings.items() if key in known or value is not None})

    def sync(self, **settings: Any) -> Any:
        """With every push to the hub the callback publishes a page of the run; an older Trackio cannot make one."""
        if set(settings) <= set(inspect.signature(self._module.sync).parameters):
            return self._module.sync(**settings)
        LOG.warning(
            "Trackio %s cannot publish its run as a page of the hub, which is left out of this push; the run is in its "
            "database. trackio sync --project %s --space-id NAME publishes it, or a newer Trackio.",
            *(self._module.__version__, settings["project"]),
        )
        return None
