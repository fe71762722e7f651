"""The content of a report, made from the records of a run: no model, no host, also for a run that died."""

from dataclasses import asdict
from typing import Any

from sdpo_plugin.errors import OutputError
from sdpo_plugin.report.cells import heldout_cells, references, training_cells
from sdpo_plugin.report.forecast import forecast
from sdpo_plugin.report.lm_eval import lm_eval_results
from sdpo_plugin.report.matrices import changes, matrices
from sdpo_plugin.report.notes import data_checks, notes
from sdpo_plugin.report.steps import step_facts
from sdpo_plugin.report.verdicts import as_rows, verdicts
from sdpo_plugin.report.write import write_report
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.history import ReadableHistories
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.progress import read_progress
from sdpo_plugin.run_dir.table_files import ReadableTables

SCHEMA_VERSION = 4


def build_report(run: RunDir) -> dict[str, Any]:
    """The content of `sdpo/report.json`, as `report.schema.json` beside this module describes it.

    A table or history that is missing or damaged leaves its cells or its curve empty, and a line in `warnings`.

    Raises:
        OutputError: there is no run here, or its ledger is missing or damaged.
    """
    require_run(run)
    ledger = Ledger.load(run.ledger)
    plan, found, logged = ledger.plan, ReadableTables(run, ledger), ReadableHistories(run)
    of_steps = references(found, run, ledger)
    train, heldout = training_cells(found, run, ledger, of_steps), heldout_cells(found, run, ledger)
    now = forecast(ledger, read_progress(run))
    checks, found_in_data = data_checks(run)
    lm_eval, lm_eval_missed = lm_eval_results(run, ledger)
    steps = [
        step_facts(step, record, of_steps.get(step.index), logged.read(step, record)) for step, record in ledger.steps
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": ledger.finished,
        "progress": None if now is None else asdict(now),
        "base_model": plan.base_model,
        "models": list(train.models),
        "versions": dict(ledger.identity.get("versions", {})),
        "lives": [{"began": life.began, "versions": life.versions, "steps": list(life.steps)} for life in ledger.lives],
        "partition": plan.partition,
        "ordering": [asdict(rank) for rank in plan.ordering],
        "overlaps": [asdict(overlap) for overlap in plan.overlaps],
        "rated": [asdict(source) for source in plan.rated],
        "left_out": [asdict(part) for part in plan.left_out],
        "data_checks": checks,
        "warnings": [*notes(plan), *found_in_data, *found.missed, *logged.missed, *lm_eval_missed],
        "verdicts": as_rows(verdicts(plan, of_steps, train, heldout, [step["beta"] for step in steps])),
        "steps": steps,
        "train": matrices(train),
        "heldout": matrices(heldout),
        "changes": [*changes(train, "train"), *changes(heldout, "heldout")],
        "lm_eval": lm_eval,
        "from_cache": list(ledger.from_cache),
    }


def report_run(run: RunDir) -> dict[str, Any]:
    """Make the report of a run, write it, and return its content.

    Raises:
        OutputError: as in ``build_report``, or it could not be written.
    """
    with explaining_write_errors(run.report):
        made = build_report(run)
        write_report(run, made)
    return made


def require_run(run: RunDir) -> None:
    """Refuse a directory that holds no run.

    Raises:
        OutputError: it says what is there instead.
    """
    if not run.root.is_dir():
        what = "is no directory" if run.root.exists() else "does not exist"
        raise OutputError(f"{run.root} {what}; give the output_dir of a run.")
    if not run.plan.exists() and not run.ledger.exists():
        raise OutputError(
            f"{run.root} holds no run: {run.plan} does not exist; give the output_dir of a run of rl: sdpo. One that "
            "has just begun has a plan when its data are prepared."
        )
    if not run.ledger.exists():
        raise OutputError(f"{run.ledger} does not exist: the run died as it began; begin it again, or restore it.")
