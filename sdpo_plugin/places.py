"""What stands in the places of a run's models and tables: links that lead out of it, models that a user has deleted."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import require_no_link
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.plan import model_name
from sdpo_plugin.sealed import flaw, is_gone, read_seal


def require_own_places(run: RunDir, to_train: Iterable[str]) -> None:
    """Refuse links in the places that a run will write to. A model that is finished may be read through one.

    Args:
        run: the directory.
        to_train: names of the steps whose models are still to be written.

    Raises:
        OutputError: one of them is a symbolic link.
    """
    for folder in (run.plan.parent, *run.tables):
        require_no_link(folder)
    for name in to_train:
        require_no_link(run.root / name)
        for checkpoint in (run.root / name).glob("checkpoint-*"):
            require_no_link(checkpoint)


def as_on_disk(run: RunDir, ledger: Ledger, checked: Path | None) -> tuple[Ledger, tuple[str, ...]]:
    """The ledger, in which a model that its user has deleted is not kept, and one that is back is; a line on each.

    Files are looked at, not read: a check of every byte is made of the model that is needed, and of no other.

    Args:
        run: the directory.
        ledger: of the run that goes on.
        checked: directory of the model that is needed, which has been checked already.

    Raises:
        OutputError: a model is damaged.
    """
    lines = []
    for step in ledger.steps:
        model, directory = model_name(step.index), run.step(step)
        if step.state != "exported" or (step.kept and directory == checked):
            continue
        problem = flaw(directory, {"run": ledger.run, "model": model}, ledger.exports.get(model), deep=False)
        if not step.kept:
            if model not in ledger.exports and problem is None:
                ledger = _with_model(ledger, step.index, read_seal(directory).digest)
                lines.append(f"{directory} is back: {model} was missing before")
        elif is_gone(directory):
            ledger = _with_model(ledger, step.index, None)
            lines.append(f"{directory} has been deleted: the run goes on without {model}, which it does not need")
        elif problem:
            raise OutputError(
                f"{directory} is not the {model} that this run has made: {problem}. The run does not need it to go "
                "on: restore it, or delete the whole directory to resume without it."
            )
    return ledger, tuple(lines)


def _with_model(ledger: Ledger, index: int, digest: str | None) -> Ledger:
    """M_t is there, sealed with this digest; None: its user has deleted it.

    Without a digest it is not this run's to remove, should its user put it back.
    """
    others = {model: digest for model, digest in ledger.exports.items() if model != model_name(index)}
    found = {} if digest is None else {model_name(index): digest}
    return replace(ledger.record(index, kept=digest is not None), exports=others | found)
