"""What the checks of pairs found, in words: a table of all sources, a line for each thing found, and the refusal."""

from collections.abc import Callable, Sequence
from functools import partial

from sdpo_plugin.pair_checks import KINDS, Found, SourceChecks
from sdpo_plugin.text import text_table

Names = Callable[[str, int], str]
"""A source and the number of one of its rows: the row in words."""
LENGTH = (("longer answer is chosen, share", "value"), ("95 %, from", "low"), ("95 %, to", "high"))


def check_rows(checks: Sequence[SourceChecks]) -> list[tuple[str, ...]]:
    """A heading with the sources, then a line for each kind: pairs that have it, a dash where none was looked at."""
    counts: list[tuple[str, Callable[[SourceChecks], int | None]]] = [
        ("all pairs", lambda source: source.num_rows),
        ("dropped (too long, or repeated)", lambda source: source.num_dropped),
        *((kind.heading, partial(_num_found, name=name)) for name, kind in KINDS.items()),
    ]
    return [
        ("pairs", *(source.source for source in checks)),
        *((heading, *(_count(of(source)) for source in checks)) for heading, of in counts),
        *((heading, *(_share(source, end) for source in checks)) for heading, end in LENGTH),
    ]


def check_table(checks: Sequence[SourceChecks]) -> str:
    """The same as text."""
    return text_table(check_rows(checks))


def check_lines(checks: Sequence[SourceChecks], names: Names | None = None) -> list[str]:
    """A line for each thing found, without a full stop. Empty: nothing was.

    Args:
        checks: of all sources.
        names: how a row is named; None: by its number.
    """
    found = []
    for source in checks:
        found += [_line(source, kind, names) for kind in KINDS if source.found[kind].num_rows]
        longer = source.longer_is_chosen
        if longer is not None and longer.predicts:
            which = "longer" if longer.value > 0.5 else "shorter"
            share, low, high = sorted_shares(longer.value, longer.low, longer.high)
            found.append(
                f"step {source.source}: length alone predicts the label: of {longer.num_rows:,} pairs with answers of "
                f"different length the {which} one is chosen in {share:.1%} (95 % {low:.1%} to {high:.1%})"
            )
    return found


def sorted_shares(value: float, low: float, high: float) -> tuple[float, float, float]:
    """An accuracy above a half, with its interval: that of the rule or of its opposite."""
    return (value, low, high) if value > 0.5 else (1 - value, 1 - high, 1 - low)


def refusals(checks: Sequence[SourceChecks], names: Names | None = None) -> list[str]:
    """A line for each thing that makes training wrong, with its threshold and the remedy."""
    lines = []
    for source in checks:
        for kind in source.refused():
            above, remedy = KINDS[kind].refused_above, KINDS[kind].remedy
            bound = "A single one is refused" if not above else f"More than {above:.0%} are refused"
            lines.append(
                f"{_line(source, kind, names)}. {bound}. {remedy} To train on them all the same, set "
                "sdpo.check_data: warn."
            )
    return lines


def _line(source: SourceChecks, kind: str, names: Names | None) -> str:
    found = source.found[kind]
    count, of = found.num_rows or 0, found.of or source.num_rows
    share = f"{count:,} of {of:,} pairs ({_percent(count, of)})"
    return f"step {source.source}: {share} {KINDS[kind].text}: {_examples(source, found, names)}"


def _examples(source: SourceChecks, found: Found, names: Names | None) -> str:
    numbers = found.rows
    in_files = found.of is not None  # numbers of other rows than the prepared ones, which have names
    named = [str(row) if names is None or in_files else names(source.source, row) for row in numbers]
    more = ", …" if (found.num_rows or 0) > len(numbers) else ""
    place = " as they stand in the files" if in_files else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(named)}{more}{place}"


def _percent(count: int, of: int) -> str:
    share = count / of
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _num_found(source: SourceChecks, name: str) -> int | None:
    return source.found[name].num_rows


def _share(source: SourceChecks, end: str) -> str:
    return "–" if source.longer_is_chosen is None else f"{getattr(source.longer_is_chosen, end):.3f}"
