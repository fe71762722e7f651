"""The report as one page that opens anywhere: no script, no font and no picture from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from sdpo_plugin.report import view
from sdpo_plugin.report.curves import rises, segments
from sdpo_plugin.report.lm_eval import lm_eval_rows
from sdpo_plugin.report.markup import element, heat_map, lines, section, table, text, wide
from sdpo_plugin.report.style import STYLE
from sdpo_plugin.report.svg import line_chart, spread_chart
from sdpo_plugin.report.view import DEFINITIONS, KINDS, LN_2, MATRICES, NOTHING, SAME_PAIRS, TITLE, ZERO

PAPER = "https://arxiv.org/abs/2403.19270"
CURVES = (
    ("loss", "Loss over the whole run", LN_2),
    ("reward_margin", "Reward margin over the whole run: β times what γ has gained on the step's reference", ZERO),
)


def html(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: the content of `report.json`.
    """
    title = f"{TITLE}: {report['base_model']}"
    benchmarks, checks = lm_eval_rows(report["lm_eval"]), view.data_check_rows(report)
    left_out, rated = view.left_out_rows(report), view.rated_rows(report)
    body = [
        _header(report),
        section("Remarks", [_remarks(report)], class_="remarks"),
        section("Steps", [table(view.step_rows(report))]),
        section("What each step began at", _gamma(report)),
        section("Training", _curves(report)),
        section("Checks of the data", [table(checks)] if checks else []),
        section("References that moved within a step", [table(view.refresh_rows(report))]),
        section("Order of the sources", [table(view.ordering_rows(report))]),
        section("Order of the sources", [table(rated)] if rated else []),
        section("Left out", [table(left_out)] if left_out else []),
        *(section(f"Models on {what}", _models(report, kind)) for kind, what in KINDS),
        section("Benchmarks", [table(benchmarks)] if benchmarks else []),
        section("Where the time went", [table(view.time_rows(report)), *_cached(report)]),
        section("Words", [_definitions()]),
        _footer(report),
    ]
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    content = "\n".join(filter(None, body))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


def _header(report: Mapping[str, Any]) -> str:
    count = len(report["steps"])
    steps = f"{count} step" + ("s" if count > 1 else "")
    state = element("span", f"{steps}, {view.state(report)}", class_="state")
    base = f"from {element('code', escape(report['base_model']))}"
    parts = [f"<h1>{TITLE}</h1>", element("p", f"{state}, {base}", class_="facts")]
    if view.lives(report):
        parts.append(element("p", text(view.lives(report)), class_="facts"))
    if not report["finished"]:
        parts.append(element("p", text(f"As this was written: {view.left(report)}."), class_="facts"))
    return element("header", "\n".join(parts))


def _remarks(report: Mapping[str, Any]) -> str:
    found = view.remarks(report)
    return lines(found) if found else element("p", NOTHING)


def _gamma(report: Mapping[str, Any]) -> Iterator[str]:
    found = rises(report)
    if found:
        caption = "γ_ref on the step's data: mean and quartiles under its reference (filled) and M_0, same rows (open)"
        yield _figure(caption, spread_chart("γ_ref of each step", found))


def _curves(report: Mapping[str, Any]) -> Iterator[str]:
    for key, caption, rule in CURVES:
        found = segments(report, key)
        if found:
            yield _figure(caption, line_chart(caption, found, rule))


def _figure(caption: str, chart: str) -> str:
    return element("figure", f"{element('figcaption', text(caption))}\n{wide(chart)}")


def _models(report: Mapping[str, Any], kind: str) -> Iterator[str]:
    filled = [matrix for matrix in MATRICES if view.is_filled(report[kind][matrix.key])]
    if filled:
        maps = "\n".join(heat_map(report, kind, matrix) for matrix in filled)
        yield element("div", maps, class_="matrices")
    yield table(view.drift_rows(report, kind))
    yield table(view.change_rows(report, kind))


def _cached(report: Mapping[str, Any]) -> Iterator[str]:
    if view.cached(report):
        yield element("p", text(view.cached(report)), class_="note")


def _definitions() -> str:
    terms = "\n".join(element("dt", text(term)) + element("dd", text(f"{what}.")) for term, what in DEFINITIONS)
    return f"{element('dl', terms)}\n{element('p', SAME_PAIRS, class_='note')}"


def _footer(report: Mapping[str, Any]) -> str:
    paper = f'<a href="{PAPER}">arXiv 2403.19270</a>'
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    parts = [element("p", f"Stepwise DPO: D. Kim et al., sDPO: Don’t Use Your Data All at Once, {paper}.")]
    parts += [element("p", escape(f"Made with {versions}."))] if versions else []
    return element("footer", "\n".join(parts))
