"""Pieces of the page: text, tables and heat maps as HTML. Everything that comes from outside is escaped here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sdpo_plugin.report import view
from sdpo_plugin.report.palette import DARK, LIGHT
from sdpo_plugin.report.view import MatrixView, Row

# A number, or several with the words between them: "+1.20 to +3.40".
_NUMBERS = re.compile(r"(–|[-+]?[\d,.]+( to |, | ± )?)*")


def text(value: str) -> str:
    """Text as HTML, indices set low: γ_ref, M_0; with a minus before numbers."""
    lowered = re.sub(r"\b([MD]|γ)_(\d+|ref)\b", r"\1<sub>\2</sub>", escape(value))
    return re.sub(r"(?<=[ (])-(?=\d)", "−", lowered)


def numbers(value: str) -> str:
    """Numbers as HTML, with a minus in place of a hyphen."""
    return escape(value).replace("-", "−")


def element(name: str, content: str, **attributes: str) -> str:
    """An element; of attributes ``class_`` stands for class."""
    written = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{written}>{content}</{name}>"


def section(heading: str, parts: Iterable[str], class_: str = "") -> str:
    """A section of the page; empty where its parts are."""
    content = "\n".join(filter(None, parts))
    return element("section", f"<h2>{text(heading)}</h2>\n{content}", class_=class_) if content else ""


def table(rows: Iterable[Row]) -> str:
    """Rows as a table, the first one as heading; columns of numbers stand to the right. Empty without a second one."""
    heading, *lines = rows
    if not lines:
        return ""
    columns = zip(*lines, strict=True)
    kinds = ["num" if all(map(_NUMBERS.fullmatch, column)) else "" for column in columns]
    top = "".join(
        element("th", text(cell), class_=kind, scope="col") for cell, kind in zip(heading, kinds, strict=True)
    )
    body = "\n".join(element("tr", "".join(map(_cell, line, kinds))) for line in lines)
    return wide(element("table", f"<thead>{element('tr', top)}</thead>\n<tbody>\n{body}\n</tbody>"))


def _cell(cell: str, kind: str) -> str:
    return element("td", numbers(cell) if kind else text(cell), class_=kind)


def wide(content: str) -> str:
    """What is scrolled where the page is narrower."""
    return element("div", content, class_="wide")


def heat_map(report: Mapping[str, Any], kind: str, matrix: MatrixView) -> str:
    """A matrix as a table of coloured cells; cells that were not computed are hatched."""
    block = report[kind]
    colours = matrix.range_of(block[matrix.key])
    top = "".join(_set_heading(block, column) for column in range(len(block["sets"])))
    lines = []
    for model, values in matrix.lines(report, kind):
        cells = (_coloured(value, matrix, None if value is None else colours.place(value)) for value in values)
        lines.append(element("tr", element("th", text(model), scope="row") + "".join(cells)))
    body = "\n".join(lines)
    rows = f"<thead>{element('tr', '<td></td>' + top)}</thead>\n<tbody>\n{body}\n</tbody>"
    caption = element("figcaption", text(matrix.heading))
    return element("figure", caption + wide(element("table", rows, class_="heat")), class_="matrix")


def _set_heading(block: Mapping[str, Any], column: int) -> str:
    name, rows = block["sets"][column], view.set_name(block, column)
    note = rows.removeprefix(name).strip(" ()")
    return element("th", text(name) + (element("small", escape(note)) if note else ""), scope="col", title=rows)


def _coloured(value: float | None, matrix: MatrixView, place: float | None) -> str:
    if value is None or place is None:
        return '<td class="none"><span>not computed</span></td>'
    style = f"--light:{LIGHT.colour(place)};--dark:{DARK.colour(place)}"
    return element("td", numbers(view.number(value, matrix.spec)), style=style)


def lines(items: Sequence[str]) -> str:
    """A list of sentences."""
    return element("ul", "\n".join(element("li", text(item)) for item in items))
