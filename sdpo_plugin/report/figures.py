"""The figures of a report by matplotlib, as PNG. It is imported with this module: only where a report is drawn."""

import io
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from warnings import catch_warnings, simplefilter

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sdpo_plugin.report import view
from sdpo_plugin.report.curves import Segment, Spread, fitting, rises, segments
from sdpo_plugin.report.palette import BLUE, GREY, LIGHT
from sdpo_plugin.report.view import ACCURACY, GAMMA, IMPLICIT, KINDS, LN_2, ZERO, MatrixView

Report = Mapping[str, Any]
INK, SOFT, LINE = "#1c2024", "#5f6770", "#e1e4e8"
LONGEST_NAME = 26  # letters
# Of the heat maps, in inches: a cell; room beside, above and below one matrix; room for the title.
CELL, LEFT, RIGHT, TOP, BOTTOM, TITLE = (0.68, 0.29), 0.55, 0.45, 1.12, 0.2, 0.35
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "text.parse_math": False,  # a name may have a dollar sign in it
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "hatch.color": "#cdd2d8",
    "hatch.linewidth": 0.8,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
}


def as_png(draw: Callable[[Report], Figure | None]) -> Callable[[Report], bytes | None]:
    """The figure that ``draw`` makes as PNG, in this style whatever the user's; None where it has nothing to show."""

    @wraps(draw)
    def drawn(report: Report) -> bytes | None:
        with style.context(["default", STYLE], after_reset=True), catch_warnings():
            simplefilter("ignore")  # letters that the font lacks are boxes in a picture, and no news for a log
            figure = draw(report)
            if figure is None:
                return None
            file = io.BytesIO()
            figure.savefig(file, format="png", metadata={"Software": None})
            return file.getvalue()

    return drawn


@as_png
def gamma_ref(report: Report) -> Figure | None:
    """Mean and quartiles of γ on each step's data: under its reference, and under M_0 (arXiv 2403.19270, Fig. 2)."""
    found = rises(report)
    if not found:
        return None
    figure = Figure(figsize=(8, 1.15 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, rise in enumerate(found):
        _spread(axes, rise.reference, row - (0.17 if rise.base else 0), BLUE, BLUE)
        if rise.base is not None:
            _spread(axes, rise.base, row + 0.17, GREY, "white")
    names = [fitting(rise.step, LONGEST_NAME) + (f"\n{rise.rows}" if rise.rows else "") for rise in found]
    axes.set_yticks(range(len(found)), names, color=INK)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.grid(axis="x", color=LINE)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("γ in nats: mean and quartiles")
    under = "under its reference" + (" (blue) and under M_0 (grey)" if any(rise.base for rise in found) else "")
    _title(figure, f"γ_ref on each step's data, {under}")
    return figure


def _spread(axes: Any, spread: Spread, y: float, colour: str, face: str) -> None:
    axes.plot([spread.low, spread.high], [y, y], color=colour, linewidth=2, solid_capstyle="round", zorder=2)
    axes.plot([spread.mean], [y], "o", color=colour, markerfacecolor=face, markersize=6, markeredgewidth=1.6, zorder=3)
    ink, at = INK if colour == BLUE else SOFT, ("axes fraction", "data")
    for text, side, points in (
        (f"{spread.mean:+,.2f}".replace("-", "−"), "right", 58),
        (fitting(spread.model, 14), "left", 64),
    ):
        axes.annotate(
            text, (1, y), (points, 0), at, "offset points", ha=side, va="center", color=ink, annotation_clip=False
        )


@as_png
def training(report: Report) -> Figure | None:
    """Loss and reward margin over the whole run, with the boundaries of the steps (arXiv 2403.19270, Fig. 3)."""
    panels = [
        (name, rule, found)
        for key, name, rule in (("loss", "loss", LN_2), ("reward_margin", "reward margin", ZERO))
        if (found := segments(report, key))
    ]
    if not panels:
        return None
    figure = Figure(figsize=(8, 0.7 + 2.1 * len(panels)), layout="constrained")
    column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, rule, found) in zip(column, panels, strict=True):
        _curve(axes, found, rule)
        axes.set_ylabel(name)
    end = max(segment.end for segment in panels[0][2])
    for segment in panels[0][2]:
        room = int((segment.end - segment.start) / max(end, 1) * 85)
        place = (segment.start, 1.03)
        shown_name = fitting(segment.step, room, str(segment.index))
        column[0].annotate(shown_name, place, xycoords=("data", "axes fraction"), color=SOFT, size=8)
    column[-1].set_xlim(0, max(end, 1))
    column[-1].set_xlabel("updates")
    _title(figure, " and ".join(name for name, _, _ in panels).capitalize() + " over the whole run")
    return figure


def _curve(axes: Any, steps: list[Segment], rule: tuple[float, str]) -> None:
    value, name = rule
    axes.axhline(value, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.annotate(name, (1, value), (5, 0), ("axes fraction", "data"), "offset points", va="center", color=SOFT, size=8)
    for segment in steps:
        axes.axvline(segment.start, color=GREY, linewidth=0.8, alpha=0.6, zorder=1)
        for mark in segment.marks:  # the reference was refreshed
            axes.axvline(mark, ymax=0.05, color=GREY, linewidth=0.8)
        axes.plot(segment.x, segment.y, color=BLUE, linewidth=0.9, alpha=0.35)
        dot = {"marker": "o", "markersize": 3} if len(segment.x) == 1 else {}
        axes.plot(segment.x, segment.smooth(), color=BLUE, linewidth=1.7, **dot)
    axes.grid(axis="y", color=LINE)
    axes.spines[["left", "bottom"]].set_visible(False)


@as_png
def matrices(report: Report) -> Figure | None:
    """Accuracies and mean γ of every model on every set, as heat maps; what was not computed is hatched."""
    kinds = [(kind, what) for kind, what in KINDS if view.is_filled(report[kind]["gamma"])]
    if not kinds:
        return None
    most, models = max(len(report[kind]["sets"]) for kind, _ in kinds), len(report["models"])
    across, down = LEFT + CELL[0] * most + RIGHT, TOP + CELL[1] * models + BOTTOM
    width, height = max(3 * across, 6.5), len(kinds) * down + TITLE
    figure = Figure(figsize=(width, height))
    for line, (kind, what) in enumerate(kinds):
        size = (CELL[0] * len(report[kind]["sets"]), CELL[1] * models)
        for column, matrix in enumerate((ACCURACY, IMPLICIT, GAMMA)):
            corner = (column * across + LEFT, height - TITLE - line * down - TOP - size[1])
            axes = figure.add_axes((corner[0] / width, corner[1] / height, size[0] / width, size[1] / height))
            _heat_map(axes, report, kind, matrix)
            axes.annotate(
                f"{matrix.heading}\n{what}", (0, 1), (0, 72 * TOP - 14), "axes fraction", "offset points", va="top"
            )
    _title(figure, "Models by data")
    return figure


def _heat_map(axes: Any, report: Report, kind: str, matrix: MatrixView) -> None:
    """Rows stand at the same height in every matrix, also where M_0 has none."""
    block, models = report[kind], report["models"]
    colours = matrix.range_of(block[matrix.key])
    for model, values in matrix.lines(report, kind):
        row = models.index(model)
        axes.text(-0.12, row + 0.5, model, ha="right", va="center")
        for column, value in enumerate(values):
            square = {"xy": (column + 0.02, row + 0.03), "width": 0.96, "height": 0.94, "linewidth": 0}
            if value is None:
                axes.add_patch(Rectangle(**square, facecolor="none", edgecolor="#cdd2d8", hatch="////"))
                continue
            axes.add_patch(Rectangle(**square, facecolor=LIGHT.colour(colours.place(value))))
            number = view.number(value, matrix.spec).replace("-", "−")
            axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", color=LIGHT.ink, size=8)
    first = 1 if matrix.against_base else 0
    for column, name in enumerate(block["sets"]):
        place = (column + 0.3, first - 0.15)
        axes.text(*place, fitting(name, 16), rotation=30, rotation_mode="anchor", color=SOFT, size=8)
    axes.set_xlim(0, len(block["sets"]))
    axes.set_ylim(len(models), 0)
    axes.set_axis_off()


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", va="top", size=11, weight="bold")
