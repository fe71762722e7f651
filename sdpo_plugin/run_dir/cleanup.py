"""Removing what a death has left behind, and what is no longer needed."""

from sdpo_plugin.plan import model_name
from sdpo_plugin.run_dir.files import remove_folder
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import remove


def clear(run: RunDir) -> None:
    """Remove what a run that came to nothing has left: its records but the plan, and a model half written."""
    run.ledger.unlink(missing_ok=True)
    run.progress.unlink(missing_ok=True)
    run.loggers.unlink(missing_ok=True)
    run.data_checks.unlink(missing_ok=True)
    for folder in (*run.tables, run.histories, run.lm_evals, run.made_rows, run.picked):
        remove_folder(folder)
    for folder in (run.base_adapter, run.staging):
        remove_folder(folder)


def sweep(run: RunDir, ledger: Ledger) -> None:
    """Remove models that the ledger says are not kept, and files that were half written."""
    for path in run.folder.rglob(".*.tmp"):
        if not path.is_dir():
            path.unlink(missing_ok=True)  # `axolotl sdpo report` may be writing one
    for step, record in ledger.steps:
        if not record.kept and model_name(step.index) in ledger.exports:  # else its user has deleted it
            remove(run.step(step))
