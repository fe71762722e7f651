"""What the console says of a run, out of the content of `report.json`: a few lines where something begins or ends."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_plugin.report.view import number, remarks
from sdpo_plugin.text import duration

TIMES = (("training", "train_seconds"), ("reference", "log_probs_seconds"), ("export", "export_seconds"))


def news(report: Mapping[str, Any]) -> list[str]:
    """What is to be said when this report is written: of a step that has been looked at, and of one that begins."""
    states = [step["state"] for step in report["steps"]]
    if report["finished"]:
        return step_did(report, len(states))
    if "referenced" not in states:
        return []
    index = states.index("referenced") + 1
    return [*(step_did(report, index - 1) if index > 1 else []), step_begins(report, index)]


def step_begins(report: Mapping[str, Any], index: int) -> str:
    """One line where step t begins to train."""
    step = report["steps"][index - 1]
    gamma = "" if step["gamma_ref"] is None else f", mean γ_ref {step['gamma_ref']['mean']:+.2f}"
    sources = ", ".join(step["sources"])
    return f"{_name(report, index)}: {step['num_rows']:,} rows of {sources}; reference {step['reference']}{gamma}"


def step_did(report: Mapping[str, Any], index: int) -> list[str]:
    """Two lines when M_t has been looked at: what the training was, and what it changed."""
    step, name = report["steps"][index - 1], _name(report, index)
    taken = ", ".join(f"{what} {duration(step[key])}" for what, key in TIMES if step[key] is not None)
    losses = f"loss {number(step['first_loss'], '.4f')} → {number(step['final_loss'], '.4f')}"
    where = f"M_{index} is in {step['model_dir']}" if step["model_dir"] else f"M_{index} is not kept"
    return [
        f"{name}, is done: {number(step['num_optimizer_steps'], ',')} updates ({taken}), {losses}; {where}",
        f"{name}, changed: {'; '.join(_changes(report, index)) or 'nothing was measured'}",
    ]


def run_ended(report: Mapping[str, Any], root: Path) -> list[str]:
    """The last lines: where the models and the report are, what is to be remarked, and what to do next."""
    steps, found = report["steps"], remarks(report)
    kept = [f"M_{step['index']} in {root / step['model_dir']}" for step in steps if step["model_dir"]]
    count = f"{len(found) or 'no'} remark{'' if len(found) == 1 else 's'}"
    return [
        "; ".join([f"stepwise DPO is done: M_{len(steps)}, the final model, is in {root}", *kept]),
        "\n  ".join([f"report, with {count}: {root / 'sdpo' / 'report.html'}", *found]),
        "next: axolotl evaluate, inference, merge-lora and lm-eval take the same file; "
        f"axolotl sdpo report {root} OTHER_OUTPUT_DIR compares with another run",
    ]


def _name(report: Mapping[str, Any], index: int) -> str:
    return f"step {index} of {len(report['steps'])}, {report['steps'][index - 1]['name']}"


def _changes(report: Mapping[str, Any], index: int) -> Iterator[str]:
    """The step's own rows, then the held-out sets: mean γ and accuracy before and after."""
    held_out = report["heldout"]
    sets = [("its own rows", report["train"], index - 1)]
    sets += [(f"held-out {name}", held_out, column) for column, name in enumerate(held_out["sets"])]
    for what, block, column in sets:
        gamma = [block["gamma"][row][column] for row in (index - 1, index)]
        accuracy = [block["reference_free_accuracy"][row][column] for row in (index - 1, index)]
        if None not in gamma:
            yield f"{what} γ {gamma[0]:+.2f} → {gamma[1]:+.2f}, accuracy {accuracy[0]:.3f} → {accuracy[1]:.3f}"
