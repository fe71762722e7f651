"""Matrices of a report: a row per model, a column per set of pairs, and what each step changed."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from sdpo_plugin import measures
from sdpo_plugin.measures import AgainstBase, OfAModel
from sdpo_plugin.report.cells import Cells

Matrix = list[list[float | None]]
T = TypeVar("T", OfAModel, AgainstBase)


def matrices(cells: Cells) -> dict[str, Any]:
    """Sets, rows and every measure as a matrix with a row per model M_0 … M_T; None: not computed.

    Measures against M_0 have no numbers in its own row.
    """
    alone = {at: OfAModel.of(table) for at, table in cells.tables.items()}
    against = {at: AgainstBase.of(table, base) for at, (table, base) in cells.against_base().items()}
    return {
        "sets": list(cells.sets),
        "num_rows": list(cells.num_rows),
        "of_rows": list(cells.of_rows),
        **_by_name(OfAModel, cells, alone),
        **_by_name(AgainstBase, cells, against),
    }


def _by_name(kind: type[T], cells: Cells, found: Mapping[tuple[int, int], T]) -> dict[str, Matrix]:
    """Each measure as a matrix, a row per model."""
    rows, columns = range(len(cells.models)), range(len(cells.sets))
    values = {at: vars(measured) for at, measured in found.items()}
    return {
        field.name: [[values.get((row, column), {}).get(field.name) for column in columns] for row in rows]
        for field in fields(kind)
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
