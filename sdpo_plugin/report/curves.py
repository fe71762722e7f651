"""The curves of a report: what was logged in each step, and where they lie over the whole run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_POINTS = 300  # of a step
FEWEST_LETTERS = 8  # of a name that is cut
# Name in the report, and the host's.
LOGGED = {"loss": "loss", "reward_margin": "rewards/margins", "reward_accuracy": "rewards/accuracies"}


def curve(entries: Iterable[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """The columns `update`, `loss`, `reward_margin` and `reward_accuracy` of a step; None: not logged.

    Neighbours are averaged where there are more than 300 points, as if the host had logged less often: a point is
    the mean of what was logged since the one before it.
    """
    logged = [entry for entry in entries if "loss" in entry and "step" in entry]
    size = -(-len(logged) // MOST_POINTS)
    groups = [logged[start : start + size] for start in range(0, len(logged), size)] if logged else []
    columns: dict[str, list[float | None]] = {"update": [int(group[-1]["step"]) for group in groups]}
    for name, key in LOGGED.items():
        columns[name] = [_mean([entry[key] for entry in group if key in entry]) for group in groups]
    return columns


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Segment:
    """The curve of one step over the run.

    Attributes:
        index: t.
        step: its name.
        start, end: updates of the run before it, and with it.
        x: updates of the run.
        y: values.
        marks: updates of the run after which the step's reference was made again.
    """

    index: int
    step: str
    start: int
    end: int
    x: list[int]
    y: list[float]
    marks: tuple[int, ...] = ()

    def smooth(self) -> list[float]:
        """The running mean of y over a tenth of its points: what can be seen in a noisy curve."""
        half = max(len(self.y) // 20, 0)
        windows = [self.y[max(at - half, 0) : at + half + 1] for at in range(len(self.y))]
        return [sum(window) / len(window) for window in windows]


def segments(report: Mapping[str, Any], key: str) -> list[Segment]:
    """The curve ``key`` of each step that has one, one after the other.

    Args:
        report: the content of `report.json`.
        key: "loss", "reward_margin" or "reward_accuracy".
    """
    found, start = [], 0
    for step in report["steps"]:
        curve_ = step["curve"] or {"update": [], key: []}
        points = [(start + x, y) for x, y in zip(curve_["update"], curve_[key], strict=True) if y is not None]
        end = start + (step["num_optimizer_steps"] or 0)
        if points:
            x, y = ([point[axis] for point in points] for axis in (0, 1))
            marks = tuple(start + refresh["update"] for refresh in step["refreshes"])
            found.append(Segment(step["index"], step["name"], start, end, x, y, marks))
        start = end
    return found


def fitting(name: str, letters: float, instead: str = "") -> str:
    """A name where there is room for so many letters: cut in its middle, as names often differ at their ends.

    Args:
        name: the whole.
        letters: room.
        instead: what is shown where not even a part of the name would say anything.
    """
    if len(name) <= letters:
        return name
    if letters < FEWEST_LETTERS:
        return instead if len(instead) <= letters else ""
    ends = int(letters) - 1
    return f"{name[: ends - ends // 2]}…{name[len(name) - ends // 2 :]}"


@dataclass(frozen=True)
class Spread:
    """Mean and quartiles of γ under one model, in nats."""

    model: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Rise:
    """γ of D_t under the reference of step t, and under M_0 on the same rows; None where that is not known, or is it.

    Attributes:
        step: its name.
        rows: "512 of 12,859 rows" where both are of some rows only; else empty.
        reference, base: γ.
    """

    step: str
    rows: str
    reference: Spread
    base: Spread | None


def rises(report: Mapping[str, Any]) -> list[Rise]:
    """γ_ref of each step that has one (arXiv 2403.19270, Fig. 2), beside γ of M_0."""
    found = []
    for column, step in enumerate(report["steps"]):
        if step["gamma_ref"] is None:
            continue
        train, model = report["train"], step["reference"]
        base = None if model == "M_0" else _cell(train, 0, column, "M_0")
        same = _cell(train, report["models"].index(model), column, model) if model in report["models"] else None
        if base is not None and same is not None:
            some = train["num_rows"][column] != train["of_rows"][column]
            rows = f"{train['num_rows'][column]:,} of {train['of_rows'][column]:,} rows" if some else ""
            found.append(Rise(step["name"], rows, same, base))
        else:
            of_all = step["gamma_ref"]
            found.append(Rise(step["name"], "", Spread(model, of_all["mean"], of_all["q25"], of_all["q75"]), None))
    return found


def _cell(block: Mapping[str, Any], row: int, column: int, model: str) -> Spread | None:
    values = [block[key][row][column] for key in ("gamma", "gamma_q25", "gamma_q75")]
    return None if None in values else Spread(model, *values)
