"""The report of a run, made from what the run left on disk: no model, no host, also for a run that died."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpo_plugin import diagnostics
from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import write_bytes, write_json
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.plan import Plan, StepPlan, model_name, text_table
from sdpo_plugin.reference import ReferenceTable

SCHEMA_VERSION = 1
# Reward accuracy from which a reference has probably seen the data: a base model is near one half, and the paper's
# model goes from γ_ref -38.60 to +84.35 by training on it.
SEEN_BEFORE = 0.9
Matrix = list[list[float | None]]


def build_report(run: RunDir) -> dict[str, Any]:
    """The content of `sdpo/report.json`.

    Matrices have a row per model M_0 … M_T. Columns of `gamma` (mean γ in nats) and `reward_accuracy` are D_1 … D_T,
    those of `eval_gamma`, `eval_reward_accuracy` and `eval_improvement` (share of rows with γ above that of M_0) the
    held-out sets named in `eval_sets`. None: not computed.

    Raises:
        OutputError, ReferenceTableError, OSError: a file of the run is missing or torn.
    """
    plan, ledger = _load(run)
    models = [model_name(index) for index in range(len(plan.steps) + 1)]
    scored = [step for step, record in zip(plan.steps, ledger.steps, strict=True) if record.state != "planned"]
    references = {step.index: ReferenceTable.load(run.reference(step)) for step in scored}
    train = _cells(models, {**_extra_scores(run, plan, models), **{(t.model, i): t for i, t in references.items()}})
    heldout = {
        (row, column): ReferenceTable.load(run.heldout(model, column))
        for row, model in enumerate(models)
        for column in range(len(plan.heldout))
        if _is_recorded(ledger, row) and run.heldout(model, column).exists()  # a damaged one that was deleted: no cell
    }
    shape, eval_shape = (len(models), len(plan.steps)), (len(models), len(plan.heldout))
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": ledger.finished,
        "base_model": plan.base_model,
        "models": models,
        "partition": plan.partition,
        "ordering": [asdict(rank) for rank in plan.ordering],
        "overlaps": [asdict(overlap) for overlap in plan.overlaps],
        "warnings": _warnings(plan, references),
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
    try:
        plan = Plan.from_json(json.loads(run.plan.read_bytes()))
    except ValueError as error:
        raise OutputError(f"{run.plan} cannot be read: {error}") from error
    ledger = Ledger.load(run.ledger)
    if ledger.plan_fingerprint != plan.fingerprint():
        raise OutputError(
            f"{run.ledger} belongs to another plan than {run.plan}: the run died while "
            "it wrote them, and resuming it writes both; or one of them was changed by hand"
        )
    return plan, ledger


def write_report(run: RunDir) -> None:
    """Write `report.json` and `report.md` of the run, as far as it has come."""
    report = build_report(run)
    write_json(run.report, report)
    write_bytes(run.report.with_suffix(".md"), markdown(report).encode())


def summary_table(report: dict[str, Any]) -> str:
    """One line a step: what it was trained on, where it began and ended, what it did on held-out rows."""
    sets = report["eval_sets"]
    heading = ("step", "rows", "dropped", "updates", "mean γ_ref", "first loss", "last loss")
    rows = [(*heading, *(f"acc {name}" for name in sets))]
    base = report["eval_reward_accuracy"][0]
    rows.append(("M_0", "", "", "", "", "", "", *(_number(value, ".3f") for value in base)))
    for index, step in enumerate(report["steps"], 1):
        gamma_ref = step["gamma_ref"] or {"mean": None}
        rows.append(
            (
                f"M_{index} {step['name']}",
                f"{step['num_rows']:,}",
                _number(step["num_dropped"], ","),
                _number(step["num_optimizer_steps"], ","),
                _number(gamma_ref["mean"], "+.2f"),
                _number(step["first_loss"], ".4f"),
                _number(step["final_loss"], ".4f"),
                *(_number(value, ".3f") for value in report["eval_reward_accuracy"][index]),
            )
        )
    return text_table(rows)


def markdown(report: dict[str, Any]) -> str:
    """The report for reading."""
    state = "finished" if report["finished"] else "not finished"
    parts = [
        "# Stepwise DPO (sDPO) run",
        f"Base model: `{report['base_model']}`. Steps: {len(report['steps'])}, {state}.",
        f"```\n{summary_table(report)}\n```",
        "acc: share of held-out rows in which the model scores the preferred answer higher. "
        "γ_ref: log-ratio of preferred over rejected answer under the step's reference, in nats, before the step.",
    ]
    parts += [f"Note: {warning}." for warning in report["warnings"]]
    if report["ordering"]:
        ranks = [("easy to hard", "rows", "accuracy of M_0", "95 %")]
        for rank in report["ordering"]:
            interval = f"{rank['low']:.3f} to {rank['high']:.3f}"
            ranks.append((rank["source"], f"{rank['num_rows']:,}", f"{rank['accuracy']:.3f}", interval))
        parts.append(f"```\n{text_table(ranks)}\n```")
    if report["eval_sets"]:
        for title, key, spec in (
            ("mean γ, held out", "eval_gamma", "+.2f"),
            ("γ above M_0's, share", "eval_improvement", ".3f"),
        ):
            rows = [(title, *report["eval_sets"])]
            for model, values in zip(report["models"], report[key], strict=True):
                rows.append((model, *(_number(value, spec) for value in values)))
            parts.append(f"```\n{text_table(rows)}\n```")
    return "\n\n".join(parts) + "\n"


def _extra_scores(run: RunDir, plan: Plan, models: Sequence[str]) -> dict[tuple[str, int], ReferenceTable]:
    """Tables of D_t under models that were not its reference, as far as a run has made them.

    The ledger does not vouch for them: one that a dead run left in this directory is of other rows, and passed over.
    """
    files = {(model, step.index): run.score(model, step) for model in models for step in plan.steps}
    tables = {at: ReferenceTable.load(path) for at, path in files.items() if path.exists()}
    return {at: table for at, table in tables.items() if table.rows_digest == plan.steps[at[1] - 1].rows_digest}


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


def _warnings(plan: Plan, references: Mapping[int, ReferenceTable]) -> list[str]:
    """What a reader should know before believing the numbers."""
    found = []
    for earlier, later in zip(plan.ordering, plan.ordering[1:], strict=False):
        if later.high >= earlier.low:
            found.append(
                f"the order of {earlier.source} ({earlier.accuracy:.3f}, 95 % {earlier.low:.3f} to {earlier.high:.3f}) "
                f"before {later.source} ({later.accuracy:.3f}, {later.low:.3f} to {later.high:.3f}) lies within noise"
            )
    for step in plan.steps:
        table = references.get(step.index)
        if table is None or step.reference in {model_name(index) for index in range(len(plan.steps))}:
            continue
        accuracy = diagnostics.reward_accuracy(table)
        if accuracy >= SEEN_BEFORE:
            found.append(
                f"the reference {step.reference} prefers the chosen answer in {accuracy:.1%} of the rows of step "
                f"{step.name} (mean γ_ref {diagnostics.gamma_stats(table).mean:+.2f}): it has probably been trained on "
                "them. In the paper mean γ_ref was -38.60 under the base model and +84.35 under the model trained on "
                "that data (arXiv 2403.19270, Fig. 2)"
            )
    found += [
        f"{overlap.num_rows:,} rows of step {overlap.step} have a prompt that stands in {overlap.other} too"
        for overlap in plan.overlaps
    ]
    return found


def _is_recorded(ledger: Ledger, row: int) -> bool:
    """Held-out rows are scored by M_{t-1} before step t, and by M_T when all is done."""
    return ledger.steps[row].state != "planned" if row < len(ledger.steps) else ledger.finished


def _matrix(shape: tuple[int, int], values: dict[tuple[int, int], float]) -> Matrix:
    return [[values.get((row, column)) for column in range(shape[1])] for row in range(shape[0])]


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def load_report(path: Path) -> dict[str, Any]:
    """Read a `report.json`.

    Raises:
        ValueError: another schema version.
    """
    report: dict[str, Any] = json.loads(path.read_bytes())
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {report.get('schema_version')!r}; this version reads 1")
    return report


def main(arguments: list[str]) -> None:
    """`python -m sdpo_plugin.report OUTPUT_DIR`: make the report of a run again and print it."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m sdpo_plugin.report OUTPUT_DIR")
    run = RunDir(Path(arguments[0]))
    write_report(run)
    print(markdown(load_report(run.report)))


if __name__ == "__main__":
    main(sys.argv[1:])
