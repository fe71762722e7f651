"""The report for reading: tables of text out of the content of `report.json`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_plugin.report.lm_eval import lm_eval_table
from sdpo_plugin.text import duration, text_table

NOTHING = "Nothing to remark."
WORDS = (
    "γ: log-prob of the chosen less that of the rejected answer, in nats. γ_ref: γ under the step's reference, before "
    "the step. acc, reference-free accuracy: the share of pairs with γ above 0. Implicit reward accuracy: the share "
    "with γ above that of M_0, the reward accuracy of DPO with M_0 as reference throughout. A column is of the same "
    "pairs under every model."
)
# Of each matrix that is shown: its key, its heading, how its numbers are written.
SHOWN = (
    ("reference_free_accuracy", "reference-free accuracy", ".3f"),
    ("implicit_reward_accuracy", "implicit reward accuracy", ".3f"),
    ("gamma", "mean γ", "+.2f"),
    ("gamma_q25", "lower quartile of γ", "+.2f"),
)
DRIFT = (
    ("log_ratio_margin", "margin", "+.2f"),
    ("chosen_log_ratio", "chosen", "+.2f"),
    ("rejected_log_ratio", "rejected", "+.2f"),
    ("chosen_log_prob_per_token", "chosen a token", "+.3f"),
    ("kl_to_base", "KL to M_0", ".2f"),
)
KINDS = (("heldout", "held out"), ("train", "training rows"))


def summary_table(report: Mapping[str, Any]) -> str:
    """One line a step: its rows, where it began and ended, its accuracy on held-out rows."""
    heldout = report["heldout"]
    heading = ("step", "rows", "dropped", "updates", "mean γ_ref", "first loss", "last loss")
    rows = [(*heading, *(f"acc {name}" for name in heldout["sets"]))]
    accuracy = heldout["reference_free_accuracy"]
    rows.append(("M_0", "", "", "", "", "", "", *(number(value, ".3f") for value in accuracy[0])))
    for index, step in enumerate(report["steps"], 1):
        gamma_ref = step["gamma_ref"] or {"mean": None}
        rows.append(
            (
                f"M_{index} {step['name']}",
                f"{step['num_rows']:,}",
                number(step["num_dropped"], ","),
                number(step["num_optimizer_steps"], ","),
                number(gamma_ref["mean"], "+.2f"),
                number(step["first_loss"], ".4f"),
                number(step["final_loss"], ".4f"),
                *(number(value, ".3f") for value in accuracy[index]),
            )
        )
    return text_table(rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The report for reading."""
    state = "finished" if report["finished"] else "not finished"
    parts = [
        "# Stepwise DPO (sDPO) run",
        f"Base model: `{report['base_model']}`. Steps: {len(report['steps'])}, {state}.",
        *([] if report["finished"] else [f"As this was written: {left(report)}."]),
        _block(summary_table(report)),
        WORDS,
        "## Remarks",
        "\n".join(f"- {remark}" for remark in remarks(report)) or NOTHING,
    ]
    if report["ordering"]:
        parts += ["## Order of the sources", _block(text_table(_ordering(report)))]
    for key, what in KINDS:
        tables = list(_matrices(report, report[key]))
        if tables:
            parts += [f"## Models on {what}", *map(_block, tables)]
    benchmarks = lm_eval_table(report["lm_eval"])
    parts += [] if benchmarks is None else ["## Benchmarks", _block(benchmarks)]
    parts += ["## Where the time went", _block(text_table(_times(report)))]
    return "\n\n".join(parts) + "\n"


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Verdicts, then doubts about plan and tables, each a sentence."""
    found = [*(verdict["text"] for verdict in report["verdicts"]), *report["warnings"]]
    return [f"{text if text.startswith(('sdpo/', 'lm-eval')) else text[0].upper() + text[1:]}." for text in found]


def left(report: Mapping[str, Any]) -> str:
    """Where a run stands that is not finished."""
    now, steps = report["progress"], len(report["steps"])
    if not now["step"]:
        return f"{steps} of {steps} steps done; what tells of the last model is left"
    update = f"update {now['update']:,} of {now['num_updates']:,}"
    to_go = "" if now["seconds"] is None else f", about {duration(now['seconds'])}"
    chain = f"{now['updates_left']:,} updates left in the chain{to_go}"
    return f"{now['steps_done']} of {steps} steps done; step {now['name']} at {update}; {chain}"


def _matrices(report: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    """What is known of the models on these sets, and what was not computed anywhere left out."""
    models = report["models"]
    for key, heading, spec in SHOWN:
        if _filled(block[key]):
            rows = [(heading, *map(_set_name, block["sets"], block["num_rows"], block["of_rows"]))]
            rows += [
                (model, *(number(value, spec) for value in line))
                for model, line in zip(models, block[key], strict=True)
            ]
            yield text_table(rows)
    drift = list(_drift(models, block))
    if len(drift) > 1:
        yield text_table(drift)


def _drift(models: Sequence[str], block: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each model after M_0 against M_0, set by set, in nats."""
    yield "against M_0, in nats", "set", *(heading for _, heading, _ in DRIFT)
    for column, name in enumerate(block["sets"]):
        for row, model in enumerate(models):
            if row and block["log_ratio_margin"][row][column] is not None:
                yield model, name, *(number(block[key][row][column], spec) for key, _, spec in DRIFT)


def _ordering(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("easy to hard", "rows", "reference-free accuracy of M_0", "95 %")]
    for rank in report["ordering"]:
        interval = f"{rank['low']:.3f} to {rank['high']:.3f}"
        rows.append((rank["source"], f"{rank['num_rows']:,}", f"{rank['accuracy']:.3f}", interval))
    return rows


def _times(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Seconds of each step; those of diagnostics are what the matrices cost."""
    keys = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds")
    heading = ("seconds", "reference and held out", "diagnostics", "training", "export")
    return [heading, *((step["name"], *(number(step[key], ",.1f") for key in keys)) for step in report["steps"])]


def _set_name(name: str, num_rows: int | None, of_rows: int | None) -> str:
    if num_rows is None or num_rows == of_rows:
        return name
    return f"{name} ({num_rows:,} of {of_rows:,} rows)"


def _filled(matrix: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for line in matrix for value in line)


def _block(table: str) -> str:
    return f"```\n{table}\n```"


def number(value: float | None, spec: str) -> str:
    """A number as it is shown, or a dash where there is none."""
    return "–" if value is None else format(value, spec)
