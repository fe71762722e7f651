"""Charts as SVG that stands in the page itself; its colours and letters are those of the page."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from sdpo_plugin.report.curves import Rise, Segment, Spread, fitting
from sdpo_plugin.report.markup import numbers

WIDTH = 760
LETTER = 6.4  # width of one in pixels, on average
MARK = 9  # height of a refresh
ROW = 46  # height of one in the chart of γ


@dataclass(frozen=True)
class Axis:
    """Where numbers stand: ``low`` at pixel ``start``, ``high`` at pixel ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a number."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """An axis that holds these numbers and a twentieth more on either side."""
        low, high = min(values), max(values)
        margin = (high - low) / 20 or abs(high) / 20 or 1.0
        return cls(low - margin, high + margin, start, end)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on it: 1, 2 or 5 times a power of ten apart."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [count * step for count in range(first, last + 1)]

    def labels(self, most: int = 6) -> list[tuple[float, str]]:
        """The pixel of each tick, and its number with as many digits as tell them apart."""
        found = self.ticks(most)
        apart = found[1] - found[0] if len(found) > 1 else 1.0
        digits = max(-math.floor(math.log10(apart) + 1e-9), 0)
        return [(self.at(tick), numbers(f"{tick + 0.0:,.{digits}f}")) for tick in found]


def line_chart(title: str, steps: Sequence[Segment], rule: tuple[float, str]) -> str:
    """A curve over the updates of the whole run, with the boundaries of its steps.

    Args:
        title: what it shows.
        steps: curve of each step; at least one.
        rule: a number that the curve is compared with, and its name.
    """
    height, top, bottom = 236, 30, 204
    end = max(segment.end for segment in steps)
    across = Axis(0.0, max(end, 1), 56, WIDTH - 34)
    up = Axis.of([rule[0], *(y for segment in steps for y in segment.y)], bottom, top)
    parts = [*_grid_up(up), *_labels_across(across, bottom), _text(across.end, height - 2, "updates", "end")]
    parts += [part for segment in steps for part in _boundary(segment, across, top, bottom)]
    parts += [part for segment in steps for part in _marks(segment, across, bottom)]
    level = up.at(rule[0])
    parts.append(f'<line class="rule" x1="{across.start:g}" x2="{across.end:g}" y1="{level:.1f}" y2="{level:.1f}"/>')
    for segment in steps:
        parts.append(_line(segment.x, segment.y, across, up, "raw"))
        parts.append(_line(segment.x, segment.smooth(), across, up, "curve"))
    parts.append(_text(across.end + 6, level + 4, escape(rule[1]), "start"))
    return _svg(title, height, parts)


def _boundary(segment: Segment, across: Axis, top: float, bottom: float) -> Iterator[str]:
    start, end = across.at(segment.start), across.at(segment.end)
    yield f'<line class="step" x1="{start:.1f}" x2="{start:.1f}" y1="{top - 18}" y2="{bottom}"/>'
    shown = fitting(segment.step, (end - start - 8) / LETTER, str(segment.index))
    yield _named(start + 5, top - 8, segment.step, shown, "start")


def _marks(segment: Segment, across: Axis, bottom: float) -> Iterator[str]:
    """A short line at each refresh of the step's reference, which says so when it is pointed at."""
    for mark in segment.marks:
        x, what = across.at(mark), f"reference refreshed after update {mark - segment.start:,} of {segment.step}"
        line = f'<line class="step" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom - MARK}" y2="{bottom}"/>'
        yield f"<g><title>{escape(what)}</title>{line}</g>"


def spread_chart(title: str, rises: Sequence[Rise]) -> str:
    """Mean γ and its quartiles, a line for each step: under its reference, and under M_0."""
    top, height = 12, 12 + ROW * len(rises) + 40
    bottom = top + ROW * len(rises)
    spreads = [spread for rise in rises for spread in (rise.reference, rise.base) if spread is not None]
    across = Axis.of([0.0, *(end for spread in spreads for end in (spread.low, spread.high))], 178, WIDTH - 168)
    parts = [*_grid_across(across, top, bottom), _text(across.end, height - 4, "γ in nats", "end")]
    zero = across.at(0.0)
    parts.append(f'<line class="rule" x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{bottom}"/>')
    for number, rise in enumerate(rises):
        middle = top + ROW * (number + 0.5)
        parts.append(_named(166, middle + (-2 if rise.rows else 4), rise.step, fitting(rise.step, 24), "end", "name"))
        if rise.rows:
            parts.append(_text(166, middle + 13, escape(rise.rows), "end", "rows"))
        parts += _spreads(rise, across, middle)
    return _svg(title, height, parts)


def _spreads(rise: Rise, across: Axis, middle: float) -> Iterator[str]:
    beside = WIDTH - 84
    if rise.base is None:
        yield from _spread(rise.reference, across, middle, "reference")
        yield _mean(rise.reference, beside, middle + 4, "reference")
        return
    yield from _spread(rise.base, across, middle + 8, "base")
    yield from _spread(rise.reference, across, middle - 8, "reference")
    yield _mean(rise.reference, beside, middle - 4, "reference")
    yield _mean(rise.base, beside, middle + 12, "base")


def _spread(spread: Spread, across: Axis, y: float, kind: str) -> Iterator[str]:
    low, high, mean = across.at(spread.low), across.at(spread.high), across.at(spread.mean)
    yield f'<line class="{kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:g}" y2="{y:g}"/>'
    yield f'<circle class="{kind}" cx="{mean:.1f}" cy="{y:g}" r="4.5"/>'


def _mean(spread: Spread, x: float, y: float, kind: str) -> str:
    """The mean to the left of x, its model to the right."""
    value = _text(x, y, numbers(f"{spread.mean:+,.2f}"), "end", f"mean {kind}")
    model = re.sub(r"^M_(\d+)$", r'M<tspan dy="3" font-size="9">\1</tspan>', escape(fitting(spread.model, 12)))
    return value + _text(x + 8, y, model, "start", f"mean {kind}")


def _grid_up(up: Axis) -> Iterator[str]:
    for y, label in up.labels(5):
        yield f'<line class="grid" x1="56" x2="{WIDTH - 34}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(48, y + 4, label, "end")


def _grid_across(across: Axis, top: float, bottom: float) -> Iterator[str]:
    for x, label in across.labels():
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        yield _text(x, bottom + 18, label, "middle")


def _labels_across(across: Axis, bottom: float) -> Iterator[str]:
    for x, label in across.labels(8):
        yield _text(x, bottom + 17, label, "middle")


def _line(x: Sequence[float], y: Sequence[float], across: Axis, up: Axis, kind: str) -> str:
    points = [f"{across.at(one):.1f},{up.at(other):.1f}" for one, other in zip(x, y, strict=True)]
    drawn = points * 2 if len(points) == 1 else points  # a line of one point is nothing, and of two equal ones a dot
    return f'<polyline class="{kind}" points="{" ".join(drawn)}"/>'


def _named(x: float, y: float, name: str, shown: str, anchor: str, kind: str = "") -> str:
    """What is shown of a name; the whole of it when it is pointed at."""
    return _text(x, y, f"<title>{escape(name)}</title>{escape(shown)}", anchor, kind)


def _text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    written = f' class="{kind}"' if kind else ""
    return f'<text{written} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    content = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">\n{content}\n</svg>'
