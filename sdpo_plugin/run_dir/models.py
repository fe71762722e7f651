"""The models of a run on disk: M_1 … M_T in the directories of their steps, an adapter M_0, the final model."""

from pathlib import Path

from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import M_0
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import MARKERS, Files, flaw, publish, seal

# Everything that is loaded with a final model; a model of another run is known by fewer, in fresh.py.
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")


def about_model(ledger: Ledger, model: str) -> dict[str, str]:
    """The text of the seal of a model of this run."""
    return {"run": ledger.run_id, "model": model}


def place_of(run: RunDir, ledger: Ledger, model: str) -> Path:
    """The directory of an exported model."""
    return run.base_adapter if model == M_0 else run.step(ledger.plan.steps[int(model.removeprefix("M_")) - 1])


def model_dir(run: RunDir, ledger: Ledger, model: str) -> Path | None:
    """The directory of an exported model; None for M_0 where that is the base model itself.

    Raises:
        OutputError: it is not what the ledger vouches for.
    """
    if model == M_0 and model not in ledger.exports:
        return None
    directory = place_of(run, ledger, model)
    problem = flaw(directory, about_model(ledger, model), ledger.exports.get(model))
    if problem:
        raise OutputError(
            f"{directory} is not the {model} that this run has made: {problem}. Restore it, or train again into "
            "another output_dir."
        )
    return directory


def final_model_flaw(run: RunDir, ledger: Ledger, *, deep: bool = True) -> str | None:
    """Why the final model is not the one that this run has written; None where it is."""
    return flaw(run.root, about_model(ledger, ledger.last_model), ledger.final, deep=deep)


def final_model_files(root: Path) -> list[Path]:
    """Weights, and what makes them loadable: not the card, which a user may edit, and not the host's logs."""
    weights = [path for pattern in WEIGHTS for path in root.glob(pattern) if path.name != "training_args.bin"]
    return weights + [root / name for name in MARKERS if (root / name).exists()]


def publish_model(run: RunDir, ledger: Ledger, model: str, target: Path, known: Files) -> str:
    """Seal the model that was written to the staging directory, and put it in its place; return its digest.

    Args:
        run: where it goes.
        ledger: of the run.
        model: its name.
        target: its place.
        known: files that are on disk already, with their digests.

    Raises:
        OutputError: a file cannot be written.
    """
    with explaining_write_errors(target):
        digest = seal(run.staging, about_model(ledger, model), known=known)
        publish(run.staging, target)
    return digest


def seal_final_model(run: RunDir, ledger: Ledger) -> str:
    """Seal the final model, which the host has written; return its digest.

    Raises:
        OutputError: a file cannot be written.
    """
    with explaining_write_errors(run.ledger):
        return seal(run.root, about_model(ledger, ledger.last_model), only=final_model_files(run.root))
