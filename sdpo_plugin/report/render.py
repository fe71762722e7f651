"""The report for reading: tables of text out of the content of `report.json`."""

from collections.abc import Mapping
from typing import Any

from sdpo_plugin.report.lm_eval import lm_eval_table
from sdpo_plugin.text import text_table


def summary_table(report: Mapping[str, Any]) -> str:
    """One line a step: its rows, where it began and ended, its accuracy on held-out rows."""
    sets = report["eval_sets"]
    heading = ("step", "rows", "dropped", "updates", "mean γ_ref", "first loss", "last loss")
    rows = [(*heading, *(f"acc {name}" for name in sets))]
    base = report["eval_reference_free_accuracy"][0]
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
                *(_number(value, ".3f") for value in report["eval_reference_free_accuracy"][index]),
            )
        )
    return text_table(rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The report for reading."""
    state = "finished" if report["finished"] else "not finished"
    parts = [
        "# Stepwise DPO (sDPO) run",
        f"Base model: `{report['base_model']}`. Steps: {len(report['steps'])}, {state}.",
        f"```\n{summary_table(report)}\n```",
        "acc: reference-free accuracy, the share of held-out rows in which the model gives the chosen answer the "
        "higher log-prob. "
        "γ_ref: log-ratio of chosen over rejected answer under the step's reference, in nats, before the step. "
        "Implicit reward accuracy: the share with γ above that of M_0.",
    ]
    parts += [f"Note: {warning}." for warning in report["warnings"]]
    if report["ordering"]:
        ranks = [("easy to hard", "rows", "reference-free accuracy of M_0", "95 %")]
        for rank in report["ordering"]:
            interval = f"{rank['low']:.3f} to {rank['high']:.3f}"
            ranks.append((rank["source"], f"{rank['num_rows']:,}", f"{rank['accuracy']:.3f}", interval))
        parts.append(f"```\n{text_table(ranks)}\n```")
    if report["eval_sets"]:
        for title, key, spec in (
            ("mean γ, held out", "eval_gamma", "+.2f"),
            ("implicit reward accuracy", "eval_implicit_reward_accuracy", ".3f"),
        ):
            rows = [(title, *report["eval_sets"])]
            for model, values in zip(report["models"], report[key], strict=True):
                rows.append((model, *(_number(value, spec) for value in values)))
            parts.append(f"```\n{text_table(rows)}\n```")
    benchmarks = lm_eval_table(report["lm_eval"])
    parts += [] if benchmarks is None else [f"```\n{benchmarks}\n```"]
    return "\n\n".join(parts) + "\n"


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
