"""A run that grows: the config has steps after those of the ledger, which stay as they are."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.run_dir.files import explaining_write_errors, remove_folder
from sdpo_plugin.run_dir.ledger import Ledger, Life, StepRecord
from sdpo_plugin.run_dir.models import WEIGHTS, about_model, final_model_flaw
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import SEAL, is_gone, publish, seal

TEXTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")  # what a model has beside its weights


@dataclass(frozen=True)
class Wanted:
    """The run that the config asks for.

    Attributes:
        plan: of all steps.
        identity: of the run, with all steps.
        heldout: names of the held-out sets of each step.
    """

    plan: Plan
    identity: Mapping[str, Mapping[str, Any]]
    heldout: Sequence[Sequence[str]]


def grown(ledger: Ledger, wanted: Wanted) -> Ledger:
    """The ledger with a record for each step that the config has after its own; the same one where there is none.

    Of the steps that it has only the names are looked at: whatever else may have changed is compared, as in every
    run that is resumed, with the identity, which grows by nothing but what the new steps bring.

    Raises:
        ConfigError: the steps are cut out of one pool, to which rows were added.
    """
    names, asked = [step.name for step in ledger.plan.steps], [step.name for step in wanted.plan.steps]
    _require_no_cut(ledger, wanted)
    in_turn = {_strategy(ledger.identity), _strategy(wanted.identity)} == {"natural"}
    if not in_turn or len(asked) <= len(names) or asked[: len(names)] != names:
        return ledger
    new = asked[len(names) :]
    return replace(
        ledger,
        plan=replace(wanted.plan, steps=(*ledger.plan.steps, *wanted.plan.steps[len(names) :])),
        identity=_with_new(ledger.identity, wanted, len(names)),
        records=(*ledger.records, *(StepRecord() for _ in new)),
        finished=False,
        saved=False,
        final=None,
        lives=(*_lives(ledger), Life.begin(new, wanted.identity, looked_back=not ledger.prepared)),
    )


def _lives(ledger: Ledger) -> tuple[Life, ...]:
    """The lives so far; a ledger of an earlier version of this package does not say when its one began."""
    names = tuple(step.name for step in ledger.plan.steps)
    return ledger.lives or (Life(None, dict(ledger.identity.get("versions", {})), names),)


def _with_new(identity: Mapping[str, Mapping[str, Any]], wanted: Wanted, count: int) -> dict[str, dict[str, Any]]:
    """The identity, with the rows and held-out rows that nothing but the steps after ``count`` brings."""
    rows = {f"source {number}" for number in range(count + 1, len(wanted.plan.steps) + 1)}
    known = {name for names in wanted.heldout[:count] for name in names}
    heldout = {name for names in wanted.heldout[count:] for name in names} - known
    brought = {"rows": rows, "held-out rows": heldout}
    own = {section: dict(facts) for section, facts in identity.items()}
    for section, keys in brought.items():
        found = {key: value for key, value in wanted.identity.get(section, {}).items() if key in keys}
        own |= {section: own.get(section, {}) | found} if found else {}
    return own


def _require_no_cut(ledger: Ledger, wanted: Wanted) -> None:
    strategy = _strategy(ledger.identity)
    before, now = (len(identity.get("rows", {})) for identity in (ledger.identity, wanted.identity))
    if strategy != "natural" and now > before:
        raise ConfigError(
            f"sdpo.partition: strategy: {strategy!r} cannot grow: the run in output_dir began with {before} entries of "
            f"datasets:, and now there are {now}, out of which every step would be cut anew, those that are trained "
            "among them. Take the new entry out, or train into another output_dir; a run whose steps are its entries "
            "(no partition, or strategy: natural) or sdpo.steps can grow."
        )


def _strategy(identity: Mapping[str, Mapping[str, Any]]) -> str:
    """`sdpo.partition.strategy`, of which "natural" says the same as no partition."""
    return str(identity.get("sdpo", {}).get("partition", {}).get("strategy", "natural"))


def last_exported(ledger: Ledger) -> StepPlan | None:
    """The last step whose model was written, if one was."""
    done = [step for step, record in ledger.steps if record.state == "exported"]
    return done[-1] if done else None


def needs_final_model(run: RunDir, ledger: Ledger) -> bool:
    """Whether M_T of a finished run stands nowhere but in the run directory itself, as `export_steps: last` leaves it.

    Args:
        run: the run directory.
        ledger: of the run before it grows.

    Raises:
        OutputError: it does not stand there either.
    """
    step = last_exported(ledger)
    if step is None or not ledger.saved or (ledger.records[step.index - 1].kept and not is_gone(run.step(step))):
        return False
    problem = final_model_flaw(run, ledger)
    if problem:
        raise OutputError(
            f"the run in {run.root} cannot grow: it would go on from its final model, which is not whole: {problem}. "
            "Restore it, or train again into another output_dir."
        )
    return True


def keep_final_model(run: RunDir, ledger: Ledger) -> Ledger:
    """Copy the final model into the directory of the step that has made it: the host will write another in its place.

    Raises:
        OutputError: it cannot be written.
    """
    step = last_exported(ledger)
    assert step is not None
    model = model_name(step.index)
    with explaining_write_errors(run.staging):
        remove_folder(run.staging)
        run.staging.mkdir(parents=True)
        for path in _loadable(run.root):
            shutil.copyfile(path, run.staging / path.name)
        digest = seal(run.staging, about_model(ledger, model))
        publish(run.staging, run.step(step))
    return replace(ledger.record(step.index, kept=True), exports={**ledger.exports, model: digest})


def _loadable(root: Path) -> list[Path]:
    """The files that a model is loaded from, with its tokenizer's."""
    found = {path for pattern in (*WEIGHTS, *TEXTS) for path in root.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.name not in (SEAL, "training_args.bin"))
