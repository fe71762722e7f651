"""Refusals and edits of a config before the host opens anything: after `register` it replaces output_dir/debug.log.

Nothing here writes a file. The commands of the host share one config file, and only training writes a run; so what
is about the output directory asks first which command this is.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
from axolotl.utils.schemas.enums import RLType

from sdpo_plugin import misspelt
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.block import parse_block
from sdpo_plugin.bounds import check_bounds
from sdpo_plugin.conflicts import (
    CONFLICTS,
    PACKING_CONFLICTS,
    check_conflicts,
    check_data_sources,
    check_pool,
    check_starting_adapter,
)
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.plugin_name import require_plugin_name
from sdpo_plugin.recognition import TRAINER_CLS
from sdpo_plugin.run_dir.checkpoints import require_exists
from sdpo_plugin.run_dir.fresh import require_fresh, require_no_foreign_model, require_writable
from sdpo_plugin.run_dir.inputs import names_in_place, require_inputs_kept, written_names
from sdpo_plugin.run_dir.lock import require_free
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.step_conflicts import check_step_keys
from sdpo_plugin.step_hooks import load_hook

DEFAULT_OUTPUT_DIR = "./model-out"  # the host's
COMMANDS = "axolotl.cli."  # a launcher starts each rank as `python -m axolotl.cli.train`


def command() -> str | None:
    """The command of the host that this process carries out, e.g. "train"; None where a program calls its functions."""
    context = click.get_current_context(silent=True)
    if context is not None:
        return context.info_name
    spec = sys.modules["__main__"].__spec__
    return spec.name.removeprefix(COMMANDS) if spec is not None and spec.name.startswith(COMMANDS) else None


def require_spelling(cfg: DictDefault) -> None:
    """Refuse what is nearly the plugin's name, or nearly `rl: sdpo`.

    Raises:
        ConfigError: with what was meant.
    """
    require_plugin_name(cfg.get("plugins") or [])
    misspelt.require_known_rl(cfg.get("rl"), [kind.value for kind in RLType])


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
    check_data_sources(cfg, has_steps=block.steps is not None, cuts_rows=_cuts_rows(block))
    if block.partition is not None:
        check_pool(cfg, block.partition.weights, block.partition.column)
    return block


def require_hooks(block: SDPOConfig) -> None:
    """Refuse hooks that cannot be called, before anything is loaded.

    Raises:
        ConfigError: a hook cannot be imported, or does not take one argument.
    """
    for key, name in (("before_step", block.before_step), ("after_step", block.after_step)):
        if name is not None:
            load_hook(key, name)


def check_output(cfg: DictDefault, block: SDPOConfig) -> None:
    """Refuse an output directory that this run must not write to; let other commands leave its log alone.

    Raises:
        OutputError: it cannot be written, another run is at work there, or something would be overwritten.
    """
    if cfg.get("resume_from_checkpoint") is True:  # the host takes a path only
        cfg["resume_from_checkpoint"] = str(cfg.get("output_dir") or DEFAULT_OUTPUT_DIR)
    output_dir = cfg.get("output_dir") or DEFAULT_OUTPUT_DIR
    if not isinstance(output_dir, str | Path):  # the host refuses what is no path
        return
    run = RunDir(Path(output_dir))
    if not cfg.get("inference"):
        require_writable(run.root)
    name = command()
    if name == "train":
        _check_start(run, cfg, block)
    elif name is not None and run.ledger.parent.is_dir():
        # The host starts debug.log anew unless the config says that a run is resumed; else only training reads the key.
        cfg["auto_resume_from_checkpoints"] = True


def _check_start(run: RunDir, cfg: DictDefault, block: SDPOConfig) -> None:
    require_inputs_kept(run, written_names(block, len(cfg.get("datasets") or [])), cfg, block)
    require_free(run.lock)
    asked = cfg.get("resume_from_checkpoint")
    if asked:
        if Path(str(asked)) != run.root:  # which means the newest checkpoint of the run there
            require_exists(Path(str(asked)))
    elif not cfg.get("auto_resume_from_checkpoints"):
        require_fresh(run, names_in_place(run, block))
    elif not run.ledger.exists():
        if _is_first_machine():
            require_fresh(run, names_in_place(run, block))
        else:
            require_no_foreign_model(run, configs_tell=False)


def _is_first_machine() -> bool:
    """Another one may share no file system with it: what a rank has left there is no run, and rank 0 knows of one."""
    return os.environ.get("GROUP_RANK", "0") == "0"


def become_dpo(cfg: DictDefault) -> None:
    """The edits that make `rl: sdpo` the host's `rl: dpo` with our trainer."""
    cfg["rl"] = "dpo"
    cfg["trainer_cls"] = TRAINER_CLS
    cfg["precompute_ref_log_probs"] = True


def require_trainable(cfg: DictDefault) -> None:
    """Refuse what contradicts training alone; other commands read the same file.

    Raises:
        ConfigError: a conflict, or a plugin that brings a trainer of its own.
    """
    check_starting_adapter(cfg)
    _require_own_trainer(cfg)


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


def _cuts_rows(block: SDPOConfig) -> bool:
    """Whether one entry of `datasets:` can become several steps."""
    args = block.partition
    return args is not None and args.strategy != "natural" and (args.strategy != "easy_to_hard" or args.unit == "row")
