"""The content of a report, made from the records of a run: no model, no host, also for a run that died."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sdpo_plugin import measures
from sdpo_plugin.errors import OutputError
from sdpo_plugin.plan import StepPlan, model_name
from sdpo_plugin.report.lm_eval import lm_eval_results
from sdpo_plugin.report.notes import notes
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.files import explaining_write_errors, write_bytes, write_json
from sdpo_plugin.run_dir.ledger import Ledger, StepRecord
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import ReadableTables
from sdpo_plugin.tables import LogProbTable

SCHEMA_VERSION = 2
Matrix = list[list[float | None]]
Cells = Mapping[tuple[int, int], LogProbTable]


def build_report(run: RunDir) -> dict[str, Any]:
    """The content of `sdpo/report.json`.

    Matrices have a row per model M_0 … M_T. Columns of `gamma` (mean γ in nats) and `reference_free_accuracy`
    are D_1 … D_T, those of `eval_gamma`, `eval_reference_free_accuracy` and `eval_implicit_reward_accuracy`
    (against M_0) the held-out sets named in `eval_sets`. None: not computed.

    A table that is missing or damaged leaves its cells empty, and a line in `warnings`.

    Raises:
        OutputError: there is no run here, or its ledger is missing or damaged.
    """
    _require_run(run)
    ledger = Ledger.load(run.ledger)
    plan, found = ledger.plan, ReadableTables(run, ledger)
    models = [model_name(index) for index in range(len(plan.steps) + 1)]
    references = _references(found, run, ledger)
    train = _training_cells(found, run, plan.steps, models, references)
    heldout = _heldout_cells(found, run, ledger)
    shape, eval_shape = (len(models), len(plan.steps)), (len(models), len(plan.heldout))
    lm_eval, lm_eval_missed = lm_eval_results(run, ledger)
    against_base = {at: (t, heldout[0, at[1]]) for at, t in heldout.items() if at[0] and (0, at[1]) in heldout}
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": ledger.finished,
        "base_model": plan.base_model,
        "models": models,
        "partition": plan.partition,
        "ordering": [asdict(rank) for rank in plan.ordering],
        "overlaps": [asdict(overlap) for overlap in plan.overlaps],
        "warnings": [*notes(plan, references), *found.missed, *lm_eval_missed],
        "steps": [_step(step, record, references.get(step.index)) for step, record in ledger.steps],
        "gamma": _matrix(shape, {at: measures.gamma_stats(t).mean for at, t in train.items()}),
        "reference_free_accuracy": _matrix(shape, {at: measures.reference_free_accuracy(t) for at, t in train.items()}),
        "eval_sets": list(plan.heldout),
        "eval_gamma": _matrix(eval_shape, {at: measures.gamma_stats(t).mean for at, t in heldout.items()}),
        "eval_reference_free_accuracy": _matrix(
            eval_shape, {at: measures.reference_free_accuracy(t) for at, t in heldout.items()}
        ),
        "eval_implicit_reward_accuracy": _matrix(
            eval_shape, {at: measures.implicit_reward_accuracy(*tables) for at, tables in against_base.items()}
        ),
        "lm_eval": lm_eval,
    }


def write_report(run: RunDir, report: Mapping[str, Any]) -> None:
    """Write `report.json` and `report.md`.

    Raises:
        OSError: they cannot be written.
    """
    write_json(run.report, report)
    write_bytes(run.report.with_suffix(".md"), markdown(report).encode())


def report_run(run: RunDir) -> None:
    """Make the report of a run, and write it.

    Raises:
        OutputError: as in ``build_report``, or it could not be written.
    """
    with explaining_write_errors(run.report):
        write_report(run, build_report(run))


def _require_run(run: RunDir) -> None:
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


def _references(found: ReadableTables, run: RunDir, ledger: Ledger) -> dict[int, LogProbTable]:
    """The reference table of each step that has one."""
    begun = [step for step, record in ledger.steps if record.state != "planned"]
    tables = {step.index: found.read(run.reference(step), step.rows_digest) for step in begun}
    return {index: table for index, table in tables.items() if table is not None}


def _training_cells(
    found: ReadableTables,
    run: RunDir,
    steps: Sequence[StepPlan],
    models: Sequence[str],
    references: Mapping[int, LogProbTable],
) -> Cells:
    """Tables of D_t by row and column of a matrix: references, and what was computed under other models besides.

    An external reference has no row.
    """
    tables = {(m, step.index): found.read(run.log_probs(m, step), step.rows_digest) for m in models for step in steps}
    tables |= {(table.model, index): table for index, table in references.items()}
    return {
        (models.index(model), index - 1): table
        for (model, index), table in tables.items()
        if table is not None and model in models
    }


def _heldout_cells(found: ReadableTables, run: RunDir, ledger: Ledger) -> Cells:
    """Tables of the held-out sets by row and column of a matrix; one column is of the same rows throughout."""
    tables: dict[tuple[int, int], LogProbTable] = {}
    for column in range(len(ledger.plan.heldout)):
        rows_digest = None
        for row in range(len(ledger.records) + 1):
            path = run.heldout(model_name(row), column)
            table = found.read(path, rows_digest) if _is_recorded(ledger, row) else None
            if table is not None:
                tables[row, column], rows_digest = table, table.rows_digest
    return tables


def _is_recorded(ledger: Ledger, row: int) -> bool:
    """Held-out log-probs are computed under M_{t-1} before step t, and under M_T when all is done."""
    return ledger.records[row].state != "planned" if row < len(ledger.records) else ledger.finished


def _step(step: StepPlan, record: StepRecord, table: LogProbTable | None) -> dict[str, Any]:
    return {
        "index": step.index,
        "name": step.name,
        "state": record.state,
        "model_dir": step.name if record.state == "exported" and record.kept else None,
        "sources": list(step.sources),
        "num_rows": step.num_rows,
        "num_dropped": step.num_dropped,
        "num_optimizer_steps": record.num_optimizer_steps,
        "reference": step.reference,
        "policy_init": step.policy_init,
        "source_rows": list(step.source_rows),
        "gamma_ref": None if table is None else asdict(measures.gamma_stats(table)),
        "first_loss": record.first_loss,
        "final_loss": record.final_loss,
        "log_probs_seconds": record.log_probs_seconds,
        "train_seconds": record.train_seconds,
        "export_seconds": record.export_seconds,
    }


def _matrix(shape: tuple[int, int], values: Mapping[tuple[int, int], float]) -> Matrix:
    return [[values.get((row, column)) for column in range(shape[1])] for row in range(shape[0])]
