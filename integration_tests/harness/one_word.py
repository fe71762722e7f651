"""What the plugin costs a config that is not ours, where the host loads installed plugins by itself."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

PACKAGE = "sdpo_plugin"
LOADS_PLUGINS = (0, 21)  # the first release of the host that loads installed plugins by itself


def release() -> tuple[int, ...]:
    """Of the host that is installed, e.g. (0, 21)."""
    return tuple(int(part) for part in metadata.version("axolotl").split(".")[:2])


def loads_it_by_itself() -> bool:
    """Whether the installed host asks for plugins by entry point, and this one is installed with its entry point."""
    return release() >= LOADS_PLUGINS and any(
        _is_ours(point) for point in metadata.entry_points(group="axolotl.plugins")
    )


def _is_ours(point: metadata.EntryPoint) -> bool:
    return point.value.startswith(f"{PACKAGE}:")


def train(config: str, installed: bool) -> dict[str, Any]:
    """Train a config file, with the plugin installed or as if it were not. Runs in the child.

    Returns:
        The modules of this package that are `imported` when the run is over, whether Python's own `hook` for errors is
        in place, and the `plugins` that the host has registered.
    """
    import axolotl.integrations.base as base
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    if not installed:
        all_points = base.entry_points
        base.entry_points = lambda **group: [point for point in all_points(**group) if not _is_ours(point)]
    do_train(load_cfg(config), TrainerCliArgs())
    return {
        "imported": sorted(name for name in sys.modules if name.split(".")[0] == PACKAGE),
        "hook": sys.excepthook is sys.__excepthook__,
        "plugins": list(base.PluginManager.get_instance().plugins),
    }
