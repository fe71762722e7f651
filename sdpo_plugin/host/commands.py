"""The commands that need the host: the plan of a config, and what is to be said of this environment."""

import platform
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import torch
import yaml
from axolotl.cli.config import load_cfg
from axolotl.utils.schemas.enums import RLType

import sdpo_plugin
from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import ConfigError, UnsupportedHostError
from sdpo_plugin.host import compat, relied_on
from sdpo_plugin.host.setup import load
from sdpo_plugin.plugin_name import PLUGIN, is_listed
from sdpo_plugin.recognition import RL, concerns_us, is_sdpo
from sdpo_plugin.text import text_table
from sdpo_plugin.versions import TESTED, requirement

ENTRY_POINTS = "axolotl.plugins"
SHOWN = ("axolotl", "trl", "transformers", "accelerate", "peft", "deepspeed", "torch", "datasets", "bitsandbytes")


def print_plan(config: Path) -> None:
    """Print the plan of a config.

    Raises:
        ConfigError: it is no config of ours, or a wrong one.
        DataError: its data cannot be read.
    """
    _require_ours(config)
    cfg = load_cfg(str(config))
    if not is_sdpo(cfg):
        raise ConfigError(f"{config} has rl: {cfg.get('rl')!r}, and there is a plan for rl: {RL} alone.")
    _, plan = load(cfg, parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None))
    print(plan.table())


def _require_ours(config: Path) -> None:
    """Before the host reads it: where it does not load the plugin, it only says that it knows no `rl: sdpo`."""
    try:
        read = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} cannot be read as a config: {error}") from error
    if not isinstance(read, dict) or not concerns_us(read, {kind.value for kind in RLType}):
        raise ConfigError(f"{config} is no config of stepwise DPO; set rl: {RL}.")
    if not is_listed(read.get("plugins")) and not _is_found():
        raise ConfigError(f"{config} has rl: {read.get('rl')!r} and no plugin for it: {_how_to_list()}.")


def print_findings() -> None:
    """Print what runs here.

    Raises:
        UnsupportedHostError: stepwise DPO does not.
    """
    print(f"sdpo_plugin {sdpo_plugin.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
    print(text_table([("package", "installed", "tested with"), *map(_package, SHOWN)]), end="\n\n")
    contracts = [*relied_on.AT_REGISTRATION, *relied_on.of_the_trainers_classes()]
    broken = list(compat.broken(contracts))
    print(f"contracts: {len(contracts) - len(broken)} of {len(contracts)} hold")
    print(f"plugin: {'loaded by the host, no line is needed' if _is_found() else _how_to_list()}")
    print(f"devices: {_devices()}")
    refusals = [*compat.older_than_supported(), *broken]
    if refusals:
        raise UnsupportedHostError("\n".join(refusals))


def _package(name: str) -> tuple[str, str, str]:
    """Of those that have no range of their own the host says which release it takes."""
    tested = requirement(name).removeprefix(name) if name in TESTED else ""
    try:
        newer = ", which this one is newer than" if name in compat.newer_than_tested() else ""
        return name, version(name), tested + newer
    except PackageNotFoundError:
        return name, "–", tested


def _is_found() -> bool:
    """Whether the host loads the plugin for every config of this environment."""
    names = {point.value.replace(":", ".") for point in entry_points(group=ENTRY_POINTS)}
    return compat.loads_installed_plugins() and PLUGIN in names


def _how_to_list() -> str:
    reason = "is not installed" if compat.loads_installed_plugins() else "is not loaded by this host by itself"
    return f"it {reason}; add the line plugins: [{PLUGIN}] (axolotl {version('axolotl')})"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "no GPU; ranks on CPUs are for tests"
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
