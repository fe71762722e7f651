"""The name of the plugin in `plugins:`, and other names that someone may write for it."""

import importlib.abc
import sys
from collections.abc import Sequence
from typing import Any

from sdpo_plugin import crash
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.text import is_close, plain

PACKAGE = "sdpo_plugin"
PLUGIN = f"{PACKAGE}.SDPOPlugin"

_MODULES = ("plugin", "sdpo", "sdpo_plugin")  # where someone may look for the plugin


class PluginNameError(ConfigError, AttributeError):
    """`plugins:` names something of this package that is not the plugin.

    An ``AttributeError`` for whoever asks with ``hasattr``, and no ``ImportError``, which the host only logs.
    """


def is_listed(plugins: Any) -> bool:
    """Whether `plugins:` has an entry of this package."""
    return isinstance(plugins, list | tuple) and any(str(name).startswith(f"{PACKAGE}.") for name in plugins)


def require_plugin_name(plugins: Sequence[Any]) -> None:
    """Refuse other ways to write the plugin's name: the host skips one that it cannot import, and trains.

    Raises:
        ConfigError: it names the entry and the right one.
    """
    wrong = [str(name) for name in plugins if str(name).startswith(f"{PACKAGE}.") and name != PLUGIN]
    if wrong:
        raise ConfigError(f"plugins: {wrong[0]!r} is not the plugin's name; did you mean {PLUGIN!r}? Set that instead.")


def no_such_attribute(name: str) -> AttributeError:
    """The error for a ``name`` that the package does not have."""
    problem = f"module {PACKAGE!r} has no attribute {name!r}"
    # A submodule is asked for by its name, in small letters, before it is imported.
    if name[:1].isupper() or is_close(plain(name).replace("_", ""), "sdpoplugin"):
        crash.install()
        return PluginNameError(f"{problem}; did you mean plugins: [{PLUGIN}]?")
    return AttributeError(problem)


class _WrongModules(importlib.abc.MetaPathFinder):
    """Asked when no other finder knows a module: `sdpo_plugin.plugin` is where the plugin could be, and is not."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise for what looks like the plugin's module; of all else know nothing."""
        parent, _, name = fullname.rpartition(".")
        if parent == PACKAGE and name.islower() and any(is_close(name, module) for module in _MODULES):
            crash.install()
            raise PluginNameError(f"there is no module {fullname!r}; did you mean plugins: [{PLUGIN}]?")


def watch_imports() -> None:
    """Answer imports of modules that this package does not have: the host would only log the failure. Idempotent."""
    if not any(isinstance(finder, _WrongModules) for finder in sys.meta_path):
        sys.meta_path.append(_WrongModules())
