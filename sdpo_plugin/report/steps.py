"""What a report says of each step: its plan, what was done of it, and how the reference stood to its data."""

from dataclasses import asdict
from typing import Any

from sdpo_plugin import measures
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.report.curves import curve
from sdpo_plugin.run_dir.history import Entry
from sdpo_plugin.run_dir.ledger import StepRecord
from sdpo_plugin.tables import LogProbTable


def step_facts(
    step: StepPlan, record: StepRecord, table: LogProbTable | None, history: tuple[Entry, ...] | None
) -> dict[str, Any]:
    """One entry of `steps`.

    Args:
        step: t.
        record: of it, in the ledger.
        table: its reference table; None where it has none, or none that can be read.
        history: what was logged in it, likewise.
    """
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
        "reference_refresh": None if step.refresh is None else asdict(step.refresh),
        "refreshes": [asdict(refresh) for refresh in record.refreshes],
        "policy_init": step.policy_init,
        "source_rows": list(step.source_rows),
        "gamma_ref": None if table is None else asdict(measures.gamma_stats(table)),
        "first_loss": record.first_loss,
        "final_loss": record.final_loss,
        "beta": record.beta,
        "learning_rate": record.settings.get("learning_rate"),
        "curve": None if history is None else curve(history),
        "log_probs_seconds": record.log_probs_seconds,
        "diagnostics_seconds": record.diagnostics_seconds,
        "train_seconds": record.train_seconds,
        "refresh_seconds": record.refresh_seconds,
        "export_seconds": record.export_seconds,
    }
