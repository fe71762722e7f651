"""What loggers get of a report when a model has been looked at: its numbers, and the matrices so far."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of every set: what says where a model stands, whatever the reference of its step was.
MEASURES = (
    *("gamma", "gamma_per_token", "reference_free_accuracy", "implicit_reward_accuracy", "log_ratio_margin"),
    *("chosen_log_ratio", "rejected_log_ratio", "chosen_log_prob_per_token", "kl_to_base"),
)
TABLES = ("gamma", "reference_free_accuracy", "implicit_reward_accuracy")
KINDS = ("train", "heldout")
UNFIT = re.compile(r"[^\w. -]")  # in the name of a metric


@dataclass(frozen=True)
class Logged:
    """What loggers get.

    Attributes:
        values: of the model that was looked at last, by name, e.g. "sdpo/heldout/val/kl_to_base".
        columns: of the tables: the model, then a set each.
        tables: rows of each matrix, by name, e.g. "sdpo/models/gamma".
        pictures: the report's, when the chain is over.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] = ()
    tables: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    pictures: Sequence[Path] = ()


def logged(report: Mapping[str, Any]) -> Logged:
    """Nothing, unless a model has just been looked at: before each training, and at the end."""
    states = [step["state"] for step in report["steps"]]
    if not report["finished"] and "referenced" not in states:
        return Logged()
    row = len(states) if report["finished"] else states.index("referenced")
    sets = [f"{key} {name}" for key in KINDS for name in report[key]["sets"]]
    tables = {
        f"sdpo/models/{measure}": [
            [model, *(value for key in KINDS for value in report[key][measure][index])]
            for index, model in enumerate(report["models"])
        ]
        for measure in TABLES
    }
    return Logged(dict(_values(report, row)), ["model", *sets], tables)


def _values(report: Mapping[str, Any], row: int) -> Iterator[tuple[str, float]]:
    for key in KINDS:
        for column, name in enumerate(report[key]["sets"]):
            for measure in MEASURES:
                value = report[key][measure][row][column]
                if value is not None:
                    yield f"sdpo/{key}/{UNFIT.sub('_', name)}/{measure}", value
