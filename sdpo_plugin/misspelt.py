"""Misspelt names, which the host would drop, skip or end over, each with the one that was meant."""

import difflib
import importlib.abc
import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any

from sdpo_plugin import crash
from sdpo_plugin.args import PartitionArgs, SDPOConfig
from sdpo_plugin.errors import ConfigError

PACKAGE = "sdpo_plugin"
PLUGIN = f"{PACKAGE}.SDPOPlugin"
BLOCK = "sdpo"
RL = "sdpo"
OWNERS = {name: f"{BLOCK}.partition.{name}" for name in PartitionArgs.model_fields} | {
    name: f"{BLOCK}.{name}" for name in SDPOConfig.model_fields
}
"""Where each key of the block belongs. What a step sets are the host's own keys, and a `name` may be anyone's."""

_CLOSE = 0.75  # two letters of four exchanged, one too few, one too many
_MODULES = ("plugin", "sdpo", "sdpo_plugin")  # where someone may look for the plugin
_SHOWN = 200  # characters of a value: a block of data sets may be long


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


def require_known_rl(rl: Any, known: Container[str]) -> None:
    """Refuse what is nearly `rl: sdpo`, and no value of the host's.

    Raises:
        ConfigError: it names the value and the right one.
    """
    if isinstance(rl, str) and rl != RL and rl not in known and _is_close(_plain(rl).replace("_", ""), RL):
        raise ConfigError(f"rl: {rl!r} is no value that the host knows; did you mean rl: {RL}? Set that instead.")


def require_known_keys(cfg: Mapping[Any, Any], known: Container[str]) -> None:
    """Refuse keys of the block at the top level, and a block under a name that is nearly its own.

    The host drops keys that it does not know without a word, and would train something else.

    Args:
        cfg: the whole config.
        known: the keys of the host and of all its plugins; what they mean by a name is theirs to say.

    Raises:
        ConfigError: a line for each, with the value and where it belongs.
    """
    unknown = [key for key in cfg if isinstance(key, str) and key != BLOCK and key not in known]
    lines = []
    for key in unknown:
        name, value = _plain(key), cfg[key]
        if name in OWNERS:
            where, remedy = OWNERS[name], "move it there, or remove it"
        elif _means_block(name, value):
            where, remedy = f"{BLOCK}:", f"rename it to {BLOCK}, or remove it"
        else:
            continue
        lines.append(
            f"{key}: {repr(value)[:_SHOWN]} stands at the top level of the config, where the host knows no such key "
            f"and drops it; did you mean {where}? {remedy.capitalize()}."
        )
    if lines:
        raise ConfigError("\n".join(lines))


def no_such_attribute(name: str) -> AttributeError:
    """The error for a ``name`` that the package does not have."""
    problem = f"module {PACKAGE!r} has no attribute {name!r}"
    # A submodule is asked for by its name, in small letters, before it is imported.
    if name[:1].isupper() or _is_close(_plain(name).replace("_", ""), "sdpoplugin"):
        crash.install()
        return PluginNameError(f"{problem}; did you mean plugins: [{PLUGIN}]?")
    return AttributeError(problem)


class _WrongModules(importlib.abc.MetaPathFinder):
    """Asked when no other finder knows a module: `sdpo_plugin.plugin` is where the plugin could be, and is not."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise for what looks like the plugin's module; of all else know nothing."""
        parent, _, name = fullname.rpartition(".")
        if parent == PACKAGE and name.islower() and any(_is_close(name, module) for module in _MODULES):
            crash.install()
            raise PluginNameError(f"there is no module {fullname!r}; did you mean plugins: [{PLUGIN}]?")


def watch_imports() -> None:
    """Answer imports of modules that this package does not have: the host would only log the failure. Idempotent."""
    if not any(isinstance(finder, _WrongModules) for finder in sys.meta_path):
        sys.meta_path.append(_WrongModules())


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _is_close(name: str, wanted: str) -> bool:
    return difflib.SequenceMatcher(None, name, wanted).ratio() >= _CLOSE


def _means_block(name: str, value: Any) -> bool:
    """A switch, such as `sdpa: true`, is no block."""
    return not isinstance(value, bool) and (name.startswith(BLOCK) or _is_close(name, BLOCK))
