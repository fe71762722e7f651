"""The report for reading as text: `report.md`, and what the command prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sdpo_plugin.report import view
from sdpo_plugin.report.lm_eval import lm_eval_rows
from sdpo_plugin.report.view import DEFINITIONS, KINDS, MATRICES, NOTHING, SAME_PAIRS, TITLE, MatrixView, Row, remarks
from sdpo_plugin.text import text_table


def summary_table(report: Mapping[str, Any]) -> str:
    """One line a step: its rows, where it began and ended, its accuracy on held-out rows."""
    return text_table(list(view.step_rows(report)))


def markdown(report: Mapping[str, Any], figures: Sequence[tuple[str, str]] = ()) -> str:
    """The report for reading.

    Args:
        report: the content of `report.json`.
        figures: file name and caption of each picture that lies beside it.
    """
    parts = [
        f"# {TITLE}",
        f"Base model: `{report['base_model']}`. Steps: {len(report['steps'])}, {view.state(report)}.",
        *filter(None, [view.lives(report)]),
        *([] if report["finished"] else [f"As this was written: {view.left(report)}."]),
        _block(view.step_rows(report)),
        " ".join(f"{_capital(term)}: {text}." for term, text in DEFINITIONS) + f" {SAME_PAIRS}",
        "## Remarks",
        "\n".join(f"- {remark}" for remark in remarks(report)) or NOTHING,
    ]
    if figures:
        parts += ["## Figures", *(f"![{caption}]({name})" for name, caption in figures)]
    checks = view.data_check_rows(report)
    parts += ["## Checks of the data", _block(checks)] if checks else []
    if report["ordering"]:
        parts += ["## Order of the sources", _block(view.ordering_rows(report))]
    rated = view.rated_rows(report)
    parts += ["## Order of the sources", _block(rated)] if rated else []
    left_out = view.left_out_rows(report)
    parts += ["## Left out", _block(left_out)] if left_out else []
    refreshed = list(view.refresh_rows(report))
    parts += ["## References that moved within a step", _block(refreshed)] if len(refreshed) > 1 else []
    for kind, what in KINDS:
        tables = list(_tables(report, kind))
        if tables:
            parts += [f"## Models on {what}", *tables]
    benchmarks = lm_eval_rows(report["lm_eval"])
    parts += ["## Benchmarks", _block(benchmarks)] if benchmarks else []
    parts += ["## Where the time went", _block(view.time_rows(report)), *filter(None, [view.cached(report)])]
    if report["versions"]:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        parts += ["## Software", f"{versions}."]
    return "\n\n".join(parts) + "\n"


def _tables(report: Mapping[str, Any], kind: str) -> Iterator[str]:
    """What is known of the models on these sets, and what was not computed anywhere left out."""
    for matrix in MATRICES:
        if view.is_filled(report[kind][matrix.key]):
            yield _block(_matrix(report, kind, matrix))
    for rows in (view.drift_rows(report, kind), view.change_rows(report, kind)):
        lines = list(rows)
        if len(lines) > 1:
            yield _block(lines)


def _matrix(report: Mapping[str, Any], kind: str, matrix: MatrixView) -> Iterator[Row]:
    block = report[kind]
    yield matrix.heading, *(view.set_name(block, column) for column in range(len(block["sets"])))
    for model, values in zip(report["models"], block[matrix.key], strict=True):
        yield model, *(view.number(value, matrix.spec) for value in values)


def _block(rows: Iterable[Row]) -> str:
    return f"```\n{text_table(list(rows))}\n```"


def _capital(term: str) -> str:
    return term[0].upper() + term[1:] if term.isascii() else term
