"""Refusing to train from the start, or to write at all, where something stands that is not this run's to overwrite."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.checkpoints import TO_RESUME, checkpoints
from sdpo_plugin.run_dir.files import existing_part, require_no_link
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import MARKERS, read_seal

# Files by which a model of another run is known; the weights of this run's own final model are listed in models.py.
FOREIGN = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
CHECKPOINTS = "checkpoint-[0-9]*"


def require_writable(output_dir: Path) -> None:
    """Refuse a directory that cannot be made or written to. Touches nothing.

    Raises:
        OutputError: a part of its path is a file, or may not be written to; or it is no path at all.
    """
    try:
        existing = existing_part(output_dir)
    except (OSError, ValueError) as error:  # too long a name, or a null byte in it
        raise OutputError(
            f"output_dir: {str(output_dir)!r} cannot be a directory: {error}; set another output_dir."
        ) from error
    if not existing.is_dir():
        raise OutputError(f"output_dir: {str(output_dir)!r}: {existing} is a file; set another output_dir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"output_dir: {str(output_dir)!r}: {existing} may not be written to; change its permissions, or set "
            "another output_dir."
        )


def require_fresh(run: RunDir, names: Sequence[str]) -> None:
    """Refuse a run directory that holds work of an earlier run; nothing is touched.

    Args:
        run: the directory.
        names: of the steps that would be trained into it.

    Raises:
        OutputError: it holds finished steps, checkpoints that a run could be resumed from, models in the places of the
            steps, or a model of a run of another kind.
    """
    require_no_foreign_model(run)
    if run.ledger.exists():
        steps = Ledger.load(run.ledger).steps
        done = [step.name for step, record in steps if record.state in ("trained", "exported")]
        begun = [step for step, record in steps if record.state == "training"]
        if done:
            raise OutputError(_refusal(run, f"holds finished steps of an earlier run ({', '.join(done)})"))
        if begun and (whole := [path for path in checkpoints(run.step(begun[0])) if _is_sealed(path)]):
            raise OutputError(_refusal(run, f"holds a half-trained step of an earlier run ({whole[-1]})"))
    require_free(run, names)


def require_free(run: RunDir, names: Sequence[str]) -> None:
    """Refuse steps in whose places models stand that this run has not made.

    Args:
        run: the directory.
        names: of the steps.

    Raises:
        OutputError: it names them.
    """
    held = [name for name in names if any((run.root / name / marker).exists() for marker in MARKERS)]
    if held:
        raise OutputError(
            f"output_dir: {str(run.root)!r} holds models in {', '.join(held)} that this run would overwrite, and "
            "nothing says how they were made; set another output_dir, or move or delete them."
        )


def require_no_foreign_model(run: RunDir, *, configs_tell: bool = True) -> None:
    """Refuse an output directory that holds the model of a run of another kind, such as `rl: dpo`.

    The host writes configs into the directory of a run that has begun, and weights when it is done; so beside a
    directory `sdpo` it is weights that tell, and a ledger says whose they are.

    Args:
        run: the directory.
        configs_tell: whether a config alone is a model too; not on another machine, where the host has written one
            for a run whose records are elsewhere.

    Raises:
        OutputError: it names what was found.
    """
    if run.ledger.exists():
        return
    by_configs = configs_tell and not run.folder.exists()
    patterns = (*FOREIGN, CHECKPOINTS, *MARKERS) if by_configs else (*FOREIGN, CHECKPOINTS)
    found = sorted({path.name for pattern in patterns for path in run.root.glob(pattern)})
    if found:
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise OutputError(
            f"output_dir: {str(run.root)!r} holds a model of another run ({shown}), which this run would overwrite; "
            "set another output_dir, or move or delete that model."
        )


def require_own_places(run: RunDir, to_train: Iterable[str]) -> None:
    """Refuse links in the places that a run will write to. A model that is finished may be read through one.

    Args:
        run: the directory.
        to_train: names of the steps whose models are still to be written.

    Raises:
        OutputError: one of them is a symbolic link.
    """
    for folder in (run.folder, *run.tables, run.histories, run.lm_evals, run.made_rows, run.picked):
        require_no_link(folder)
    for name in to_train:
        require_no_link(run.root / name)
        for checkpoint in (run.root / name).glob("checkpoint-*"):
            require_no_link(checkpoint)


def _refusal(run: RunDir, what: str) -> str:
    return (
        f"output_dir: {str(run.root)!r} {what}, and training from the start would overwrite them; {TO_RESUME} to "
        "resume where it stopped, or set another output_dir, or move or delete this one."
    )


def _is_sealed(path: Path) -> bool:
    try:
        read_seal(path)
    except ValueError:
        return False
    return True
