"""Refusals and edits of a config before the host opens anything."""

from importlib import import_module
from typing import Any

from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
from axolotl.utils.schemas.enums import RLType

from sdpo_plugin import misspelt
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.block import parse_block
from sdpo_plugin.block_conflicts import check_block_conflicts
from sdpo_plugin.bounds import check_bounds
from sdpo_plugin.conflicts import (
    CONFLICTS,
    FILLED_IN_CONFLICTS,
    PACKING_CONFLICTS,
    check_conflicts,
    check_starting_adapter,
)
from sdpo_plugin.data_conflicts import check_data_sources, check_pool
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.output_dir import command
from sdpo_plugin.plugin_name import require_plugin_name
from sdpo_plugin.recognition import TRAINER_CLS
from sdpo_plugin.step_conflicts import check_step_keys
from sdpo_plugin.step_hooks import load_hook


def require_spelling(cfg: DictDefault) -> None:
    """Refuse what is nearly the plugin's name, or nearly `rl: sdpo`.

    Raises:
        ConfigError: with what was meant.
    """
    require_plugin_name(cfg.get("plugins") or [])
    misspelt.require_known_rl(cfg.get("rl"), [kind.value for kind in RLType])


def require_no_block(cfg: DictDefault) -> None:
    """Refuse an `sdpo:` block that would be without effect.

    Raises:
        ConfigError: it names `rl`.
    """
    if cfg.get("sdpo") is not None:
        raise ConfigError(
            f"an sdpo: block is set, but rl is {cfg.get('rl')!r}; set rl: sdpo, or remove the sdpo: block."
        )


def check_config(cfg: DictDefault) -> SDPOConfig:
    """The `sdpo:` block, when nothing in the config contradicts it or itself.

    Raises:
        ConfigError: a key or a value that cannot be meant.
    """
    block = parse_block(cfg.get("sdpo"))
    conflicts = CONFLICTS if cfg.get("inference") else CONFLICTS + PACKING_CONFLICTS
    check_conflicts(cfg, conflicts)
    if command() == "train":
        check_starting_adapter(cfg)
        require_hooks(block)
    if not cfg.get("inference"):  # which takes `rl` out: the config may be of another kind
        misspelt.require_known_keys(cfg, _known_keys())
        check_step_keys(cfg, block.steps or [], AxolotlInputConfig.model_fields)
        check_bounds(cfg)
    parted = block.partition
    check_data_sources(cfg, has_steps=block.steps is not None, cuts_rows=parted is not None and parted.cuts_rows)
    if parted is not None:
        check_pool(cfg, parted.weights, parted.column)
    return block


def require_hooks(block: SDPOConfig) -> None:
    """Refuse hooks that cannot be called, before anything is loaded.

    Raises:
        ConfigError: a hook cannot be imported, or does not take one argument.
    """
    for key, name in (("before_step", block.before_step), ("after_step", block.after_step)):
        if name is not None:
            load_hook(key, name)


def become_dpo(cfg: DictDefault) -> None:
    """The edits that make `rl: sdpo` the host's `rl: dpo` with our trainer."""
    cfg["rl"] = "dpo"
    cfg["trainer_cls"] = TRAINER_CLS
    cfg["precompute_ref_log_probs"] = True


def require_trainable(cfg: DictDefault, block: SDPOConfig) -> None:
    """Refuse what contradicts training alone; other commands read the same file.

    Args:
        cfg: as the host has validated it.
        block: the `sdpo:` block.

    Raises:
        ConfigError: a conflict, or a plugin that brings a trainer of its own.
    """
    check_starting_adapter(cfg)
    check_block_conflicts(cfg, block)
    _require_own_trainer(cfg)


def check_filled_in(cfg: DictDefault) -> None:
    """Refuse what the host has set by itself, now that it has loaded the model.

    Raises:
        ConfigError: a conflict.
    """
    check_conflicts(cfg, FILLED_IN_CONFLICTS)


def _require_own_trainer(cfg: DictDefault) -> None:
    """Refuse a plugin that brings a trainer of its own: the host would take that one, and train no chain.

    Raises:
        ConfigError: it names the trainer and the plugins.
    """
    other = PluginManager.get_instance().get_trainer_cls(cfg)
    if other is not None:
        raise foreign_trainer(cfg, other)


def foreign_trainer(cfg: DictDefault, found: type[Any]) -> ConfigError:
    """The error for a host that trains, or would train, with another trainer than ours."""
    return ConfigError(
        f"rl: sdpo needs its own trainer, and a plugin brings {found.__module__}.{found.__qualname__} "
        f"(plugins: {list(cfg.get('plugins') or [])}); remove that plugin."
    )


def _known_keys() -> set[str]:
    """The keys of the host's schema and of every plugin that is loaded, this one among them."""
    known = set(AxolotlInputConfig.model_fields)
    for path in PluginManager.get_instance().get_input_args():
        module, _, name = path.rpartition(".")
        known |= set(getattr(import_module(module), name).model_fields)
    return known
