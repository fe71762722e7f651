"""What this process may do in the output directory, asked before the host replaces output_dir/debug.log.

Nothing here writes a file. The commands of the host share one config file, and only training writes a run; so what
is about the output directory asks first which command this is.
"""

import os
import sys
from pathlib import Path

import click
from axolotl.utils.dict import DictDefault

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.run_dir.checkpoints import require_exists
from sdpo_plugin.run_dir.fresh import require_fresh, require_no_foreign_model, require_writable
from sdpo_plugin.run_dir.inputs import names_in_place, require_inputs_kept, written_names
from sdpo_plugin.run_dir.lock import require_free
from sdpo_plugin.run_dir.paths import RunDir

DEFAULT_OUTPUT_DIR = "./model-out"  # the host's
COMMANDS = "axolotl.cli."  # a launcher starts each rank as `python -m axolotl.cli.train`


def command() -> str | None:
    """The command of the host that this process carries out, e.g. "train"; None where a program calls its functions."""
    context = click.get_current_context(silent=True)
    if context is not None:
        return context.info_name
    spec = sys.modules["__main__"].__spec__
    return spec.name.removeprefix(COMMANDS) if spec is not None and spec.name.startswith(COMMANDS) else None


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
