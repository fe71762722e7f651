"""The report of a run, made from what the run left on disk: no model, no host, also for a run that died."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpo_plugin import diagnostics
from sdpo_plugin.files import write_bytes, write_json
from sdpo_plugin.ledger import Ledger, RunDir, StepRecord
from sdpo_plugin.plan import Plan, StepPlan, model_name, text_table
from sdpo_plugin.reference import ReferenceTable

SCHEMA_VERSION = 1
Matrix = list[list[float | None]]


def build_report(run: RunDir) -> dict[str, Any]:
    """The content of `sdpo/report.json`.

    Matrices have a row per model M_0 … M_T. Columns of `gamma` (mean γ in nats) and `reward_accuracy` are D_1 … D_T,
    those of `eval_gamma` and `eval_reward_accuracy` the held-out sets named in `eval_sets`. None: not computed.

    Raises:
        OutputError, ReferenceTableError, OSError: a file of the run is missing or torn.
    """
    plan = Plan.from_json(json.loads(run.plan.read_bytes()))
    ledger = Ledger.load(run.ledger)
    models = [model_name(index) for index in range(len(plan.steps) + 1)]
    train = {
        (step.index - 1, step.index - 1): ReferenceTable.load(run.reference(step))
        for step, record in zip(plan.steps, ledger.steps, strict=True)
        if record.state != "planned"
    }
    heldout = {
        (row, column): ReferenceTable.load(run.heldout(model, column))
        for row, model in enumerate(models)
        for column in range(len(plan.heldout))
        if _is_recorded(ledger, row)
    }
    shape, eval_shape = (len(models), len(plan.steps)), (len(models), len(plan.heldout))
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": ledger.finished,
        "base_model": plan.base_model,
        "models": models,
        "steps": [
            _step(plan, step, record, train.get((step.index - 1, step.index - 1)))
            for step, record in zip(plan.steps, ledger.steps, strict=True)
        ],
        "gamma": _matrix(shape, {at: diagnostics.gamma_stats(table).mean for at, table in train.items()}),
        "reward_accuracy": _matrix(shape, {at: diagnostics.reward_accuracy(t) for at, t in train.items()}),
        "eval_sets": list(plan.heldout),
        "eval_gamma": _matrix(eval_shape, {at: diagnostics.gamma_stats(t).mean for at, t in heldout.items()}),
        "eval_reward_accuracy": _matrix(eval_shape, {at: diagnostics.reward_accuracy(t) for at, t in heldout.items()}),
    }


def write_report(run: RunDir) -> None:
    """Write `report.json` and `report.md` of the run, as far as it has come."""
    report = build_report(run)
    write_json(run.report, report)
    write_bytes(run.report.with_suffix(".md"), markdown(report).encode())


def summary_table(report: dict[str, Any]) -> str:
    """One line a step: what it was trained on, where it began and ended, what it did on held-out rows."""
    sets = report["eval_sets"]
    rows = [("step", "rows", "updates", "mean γ_ref", "first loss", "last loss", *(f"acc {name}" for name in sets))]
    base = report["eval_reward_accuracy"][0]
    rows.append(("M_0", "", "", "", "", "", *(_number(value, ".3f") for value in base)))
    for index, step in enumerate(report["steps"], 1):
        gamma_ref = step["gamma_ref"] or {"mean": None}
        rows.append(
            (
                f"M_{index} {step['name']}",
                f"{step['num_rows']:,}",
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
    if report["eval_sets"]:
        rows = [("mean γ, held out", *report["eval_sets"])]
        for model, values in zip(report["models"], report["eval_gamma"], strict=True):
            rows.append((model, *(_number(value, "+.2f") for value in values)))
        parts.append(f"```\n{text_table(rows)}\n```")
    return "\n\n".join(parts) + "\n"


def _step(plan: Plan, step: StepPlan, record: StepRecord, table: ReferenceTable | None) -> dict[str, Any]:
    exported = record.state == "exported"
    facts = asdict(record)
    return {
        "index": step.index,
        "name": step.name,
        "state": record.state,
        "model_dir": step.name if exported else None,
        "sources": list(step.sources),
        "num_rows": step.num_rows,
        "num_optimizer_steps": facts["num_optimizer_steps"] or step.num_optimizer_steps,
        "reference": step.reference,
        "policy_init": step.policy_init,
        "gamma_ref": None if table is None else asdict(diagnostics.gamma_stats(table)),
        **{key: facts[key] for key in ("first_loss", "final_loss", "score_seconds", "train_seconds", "export_seconds")},
    }


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
