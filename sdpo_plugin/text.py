"""Text: tables of it, and words that are nearly the same."""

import difflib
from collections.abc import Sequence

_CLOSE = 0.75  # two letters of four exchanged, one too few, one too many


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by width, the first row as heading; columns of numbers stand to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(map(is_number, column[1:])) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def plain(name: str) -> str:
    """A name as it is compared with others: small letters, underscores."""
    return name.strip().lower().replace("-", "_")


def is_close(name: str, wanted: str) -> bool:
    """Whether a name is nearly the one that is wanted, or is it."""
    return difflib.SequenceMatcher(None, name, wanted).ratio() >= _CLOSE


def duration(seconds: float) -> str:
    """A time as people say it: "8 s", "12 min 5 s", "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def is_number(cell: str) -> bool:
    """Whether a cell of a table is a number, or empty."""
    return cell in ("", "–") or cell.strip("+-").replace(",", "").replace(".", "").isdigit()
