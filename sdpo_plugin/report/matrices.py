"""Matrices of a report: a row per model, a column per set of pairs, and what each step changed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from sdpo_plugin import measures
from sdpo_plugin.report.cells import Cells

Matrix = list[list[float | None]]
T = TypeVar("T")


def matrices(cells: Cells) -> dict[str, Any]:
    """Sets, rows and every measure as a matrix with a row per model M_0 … M_T; None: not computed.

    Measures against M_0 have no numbers in its own row.
    """
    shape = (len(cells.models), len(cells.sets))

    def matrix(values: Mapping[tuple[int, int], T], measure: Callable[[T], float]) -> Matrix:
        found = {at: measure(value) for at, value in values.items()}
        return [[found.get((row, column)) for column in range(shape[1])] for row in range(shape[0])]

    against = cells.against_base()
    return {
        "sets": list(cells.sets),
        "num_rows": list(cells.num_rows),
        "of_rows": list(cells.of_rows),
        **{name: matrix(cells.tables, measure) for name, measure in measures.OF_A_MODEL.items()},
        **{
            name: matrix(against, lambda pair, measure=measure: measure(*pair))  # type: ignore[misc]
            for name, measure in measures.AGAINST_BASE.items()
        },
    }


def changes(cells: Cells, kind: str) -> list[dict[str, Any]]:
    """What each step changed on each set, where both of its models were computed on it.

    Args:
        cells: of training or of held-out sets.
        kind: "train" or "heldout".
    """
    found = []
    for step in range(1, len(cells.models)):
        for column, name in enumerate(cells.sets):
            around = cells.around(step, column)
            change = None if around is None else measures.change(*around)
            if change is not None:
                found.append({"step": step, "kind": kind, "set": name, "column": column, **asdict(change)})
    return found
