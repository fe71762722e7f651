"""The report of a run, made from what the run left on disk: no model, no host, also for a run that died."""

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpo_plugin import crash, diagnostics
from sdpo_plugin.errors import OutputError, SDPOError
from sdpo_plugin.files import require_no_link, write_bytes, write_json
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.notes import notes
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.render import markdown
from sdpo_plugin.stored import read_object
from sdpo_plugin.tables import Findings

SCHEMA_VERSION = 1
Matrix = list[list[float | None]]


def build_report(run: RunDir) -> dict[str, Any]:
    """The content of `sdpo/report.json`.

    Matrices have a row per model M_0 … M_T. Columns of `gamma` (mean γ in nats) and `reward_accuracy` are D_1 … D_T,
    those of `eval_gamma`, `eval_reward_accuracy` and `eval_improvement` (share of rows with γ above that of M_0) the
    held-out sets named in `eval_sets`. None: not computed.

    A table that is missing or damaged leaves its cells empty, and a line in `warnings`: it is told of, not trained on.

    Raises:
        OutputError: there is no run here, or its plan or ledger is missing or torn.
    """
    plan, ledger = _load(run)
    found = Findings(run, ledger)
    models = [model_name(index) for index in range(len(plan.steps) + 1)]
    references = _references(found, run, plan, ledger)
    own = {(table.model, index): table for index, table in references.items()}
    train = _cells(models, {**_extra_scores(found, run, plan, models), **own})
    heldout = _heldout(found, run, plan, ledger)
    shape, eval_shape = (len(models), len(plan.steps)), (len(models), len(plan.heldout))
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": ledger.finished,
        "base_model": plan.base_model,
        "models": models,
        "partition": plan.partition,
        "ordering": [asdict(rank) for rank in plan.ordering],
        "overlaps": [asdict(overlap) for overlap in plan.overlaps],
        "warnings": [*notes(plan, references), *found.missed],
        "steps": [
            _step(step, record, references.get(step.index))
            for step, record in zip(plan.steps, ledger.steps, strict=True)
        ],
        "gamma": _matrix(shape, {at: diagnostics.gamma_stats(table).mean for at, table in train.items()}),
        "reward_accuracy": _matrix(shape, {at: diagnostics.reward_accuracy(t) for at, t in train.items()}),
        "eval_sets": list(plan.heldout),
        "eval_improvement": _matrix(
            eval_shape,
            {
                (row, col): diagnostics.improvement(t, heldout[0, col])
                for (row, col), t in heldout.items()
                if row and (0, col) in heldout
            },
        ),
        "eval_gamma": _matrix(eval_shape, {at: diagnostics.gamma_stats(t).mean for at, t in heldout.items()}),
        "eval_reward_accuracy": _matrix(eval_shape, {at: diagnostics.reward_accuracy(t) for at, t in heldout.items()}),
    }


def _load(run: RunDir) -> tuple[Plan, Ledger]:
    _require_run(run)
    plan, ledger = Plan.load(run.plan), Ledger.load(run.ledger)
    if ledger.plan_fingerprint != plan.fingerprint():
        raise OutputError(
            f"{run.ledger} belongs to another plan than {run.plan}: the run died while "
            "it wrote them, and resuming it writes both; or one of them was changed by hand"
        )
    planned, done = (
        [(step.name, step.reference, step.policy_init) for step in steps] for steps in (plan.steps, ledger.steps)
    )
    if planned != done:
        differ = next((t for t, both in enumerate(zip(planned, done, strict=False), 1) if both[0] != both[1]), None)
        seen = "they have different numbers of steps"
        if differ is not None:
            seen = f"step {differ} is {planned[differ - 1]} in the one and {done[differ - 1]} in the other"
        raise OutputError(
            f"{run.plan} and {run.ledger} speak of other steps: {seen} (name, reference, start); one of them was "
            "changed by hand: restore it."
        )
    return plan, ledger


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


def write_report(run: RunDir) -> None:
    """Write `report.json` and `report.md` of the run, as far as it has come.

    Raises:
        OutputError: as in ``build_report``.
        OSError: they cannot be written.
    """
    _write(run, build_report(run))


def _write(run: RunDir, report: dict[str, Any]) -> None:
    write_json(run.report, report)
    write_bytes(run.report.with_suffix(".md"), markdown(report).encode())


def _references(found: Findings, run: RunDir, plan: Plan, ledger: Ledger) -> dict[int, ReferenceTable]:
    """The reference table of each step that has been scored."""
    scored = [step for step, record in zip(plan.steps, ledger.steps, strict=True) if record.state != "planned"]
    tables = {step.index: found.read(run.reference(step), step.rows_digest) for step in scored}
    return {index: table for index, table in tables.items() if table is not None}


def _extra_scores(
    found: Findings, run: RunDir, plan: Plan, models: Sequence[str]
) -> dict[tuple[str, int], ReferenceTable]:
    """Tables of D_t under models that were not its reference, as far as a run has made them."""
    tables = {
        (model, step.index): found.read(run.score(model, step), step.rows_digest)
        for model in models
        for step in plan.steps
    }
    return {at: table for at, table in tables.items() if table is not None}


def _heldout(found: Findings, run: RunDir, plan: Plan, ledger: Ledger) -> dict[tuple[int, int], ReferenceTable]:
    """Tables of the held-out sets by row and column of a matrix; one column is of the same rows throughout."""
    tables: dict[tuple[int, int], ReferenceTable] = {}
    for column in range(len(plan.heldout)):
        rows_digest = None
        for row in range(len(plan.steps) + 1):
            path = run.heldout(model_name(row), column)
            table = found.read(path, rows_digest) if _is_recorded(ledger, row) else None
            if table is not None:
                tables[row, column], rows_digest = table, table.rows_digest
    return tables


def _cells(
    models: Sequence[str], tables: Mapping[tuple[str, int], ReferenceTable]
) -> dict[tuple[int, int], ReferenceTable]:
    """Tables by row and column of a matrix; an external reference has no row."""
    return {(models.index(model), step - 1): t for (model, step), t in tables.items() if model in models}


def _step(step: StepPlan, record: StepRecord, table: ReferenceTable | None) -> dict[str, Any]:
    exported = record.state == "exported" and record.kept
    facts = asdict(record)
    return {
        "index": step.index,
        "name": step.name,
        "state": record.state,
        "model_dir": step.name if exported else None,
        "sources": list(step.sources),
        "num_rows": step.num_rows,
        "num_dropped": step.num_dropped,
        "num_optimizer_steps": facts["num_optimizer_steps"],
        "reference": step.reference,
        "policy_init": step.policy_init,
        "source_rows": list(step.source_rows),
        "gamma_ref": None if table is None else asdict(diagnostics.gamma_stats(table)),
        **{key: facts[key] for key in ("first_loss", "final_loss", "score_seconds", "train_seconds", "export_seconds")},
    }


def _is_recorded(ledger: Ledger, row: int) -> bool:
    """Held-out rows are scored by M_{t-1} before step t, and by M_T when all is done."""
    return ledger.steps[row].state != "planned" if row < len(ledger.steps) else ledger.finished


def _matrix(shape: tuple[int, int], values: dict[tuple[int, int], float]) -> Matrix:
    return [[values.get((row, column)) for column in range(shape[1])] for row in range(shape[0])]


def load_report(path: Path) -> dict[str, Any]:
    """Read a `report.json`.

    Raises:
        OutputError: it is missing, torn or of another schema version.
    """
    try:
        report = read_object(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}; python -m sdpo_plugin.report makes it again.") from error
    if report.get("schema_version") != SCHEMA_VERSION:
        raise OutputError(f"{path} has schema_version {report.get('schema_version')!r}; this version reads 1")
    return report


def main(arguments: Sequence[str]) -> int:
    """`python -m sdpo_plugin.report OUTPUT_DIR`: make the report of a run again and print it.

    Returns:
        The exit code: 0, or 1 where there is no report to be made. Wrong usage ends with 2, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sdpo_plugin.report",
        description="Make the report of a run again, from what it left on disk, and print it; also of a run that died. "
        "Writes sdpo/report.json and sdpo/report.md there.",
    )
    parser.add_argument("output_dir", type=Path, help="the output_dir of a run with rl: sdpo")
    run = RunDir(parser.parse_args(arguments).output_dir)
    try:
        report = build_report(run)
        _print(markdown(report))
        require_no_link(run.report.parent)
        _write(run, report)
    except SDPOError as error:
        print(crash.lines(str(error)), file=sys.stderr)
        return 1
    except OSError as error:
        print(crash.lines(f"the report could not be read or written in {run.root}: {error}"), file=sys.stderr)
        return 1
    return 0


def _print(text: str) -> None:
    """Print for whatever reads: one that knows no γ, one that has seen enough."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
