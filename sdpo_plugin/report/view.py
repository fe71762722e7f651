"""What a report shows, in which words, and its tables as rows of text: the same for every form of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_plugin.check_words import check_rows
from sdpo_plugin.pair_checks import SourceChecks
from sdpo_plugin.report.palette import Range
from sdpo_plugin.run_dir.stored import checked
from sdpo_plugin.text import duration

TITLE = "Stepwise DPO (sDPO) run"
NOTHING = "Nothing to remark."
DEFINITIONS = (
    ("γ", "log-prob of the chosen less that of the rejected answer, in nats"),
    ("γ_ref", "γ under the step's reference, before the step"),
    ("reference-free accuracy (acc)", "the share of pairs with γ above 0"),
    (
        "implicit reward accuracy",
        "the share of pairs with γ above that of M_0, the reward accuracy of DPO with M_0 as reference throughout",
    ),
    ("lost, won", "the share of pairs with γ above 0 before a step and not after it, and the other way round"),
)
SAME_PAIRS = "A column is of the same pairs under every model."
KINDS = (("heldout", "held-out sets"), ("train", "training rows"))
LN_2 = (math.log(2), "ln 2")
ZERO = (0.0, "")
MOST_SHOWN = 8  # refreshes of a step
Row = tuple[str, ...]


@dataclass(frozen=True)
class MatrixView:
    """A matrix that is shown.

    Attributes:
        key: its name in `report.json`.
        heading: in words.
        spec: how its numbers are written.
        middle: the number that stands between good and bad.
        least: the least distance from it that has the full colour.
        against_base: whether it compares with M_0, which then has no row.
    """

    key: str
    heading: str
    spec: str
    middle: float
    least: float
    against_base: bool = False

    def range_of(self, matrix: Sequence[Sequence[float | None]]) -> Range:
        """The range of its colours."""
        return Range.around(self.middle, [value for line in matrix for value in line if value is not None], self.least)

    def lines(self, report: Mapping[str, Any], kind: str) -> list[tuple[str, list[float | None]]]:
        """The models that have a row, with it."""
        lines = list(zip(report["models"], report[kind][self.key], strict=True))
        return lines[1:] if self.against_base else lines


ACCURACY = MatrixView("reference_free_accuracy", "reference-free accuracy", ".3f", 0.5, 0.1)
IMPLICIT = MatrixView("implicit_reward_accuracy", "implicit reward accuracy", ".3f", 0.5, 0.1, against_base=True)
GAMMA = MatrixView("gamma", "mean γ", "+.2f", 0.0, 1.0)
QUARTILE = MatrixView("gamma_q25", "lower quartile of γ", "+.2f", 0.0, 1.0)
MATRICES = (ACCURACY, IMPLICIT, GAMMA, QUARTILE)
DRIFT = (
    ("log_ratio_margin", "margin", "+.2f"),
    ("chosen_log_ratio", "chosen", "+.2f"),
    ("rejected_log_ratio", "rejected", "+.2f"),
    ("chosen_log_prob_per_token", "chosen a token", "+.3f"),
    ("kl_to_base", "KL to M_0", ".2f"),
)


def number(value: float | None, spec: str) -> str:
    """A number as it is shown, or a dash where there is none."""
    return "–" if value is None else format(value, spec)


def is_filled(matrix: Sequence[Sequence[float | None]]) -> bool:
    """Whether anything of a matrix was computed."""
    return any(value is not None for line in matrix for value in line)


def set_name(block: Mapping[str, Any], column: int) -> str:
    """The name of a set, with its rows where a column is of some of them."""
    name, num_rows, of_rows = block["sets"][column], block["num_rows"][column], block["of_rows"][column]
    return name if num_rows in (None, of_rows) else f"{name} ({num_rows:,} of {of_rows:,} rows)"


def state(report: Mapping[str, Any]) -> str:
    """How far the run has come."""
    return "finished" if report["finished"] else "not finished"


def left(report: Mapping[str, Any]) -> str:
    """Where a run stands that is not finished."""
    now, steps = report["progress"], len(report["steps"])
    if not now["step"]:
        return f"{steps} of {steps} steps done; what tells of the last model is left"
    update = f"update {now['update']:,} of {now['num_updates']:,}"
    to_go = "" if now["seconds"] is None else f", about {duration(now['seconds'])}"
    if now["seconds"] is None and now["step_seconds"] is not None:
        to_go = " and those of steps whose rows are not made yet"
    chain = f"{now['updates_left']:,} updates left in the chain{to_go}"
    return f"{now['steps_done']} of {steps} steps done; step {now['name']} at {update}; {chain}"


def lives(report: Mapping[str, Any]) -> str:
    """When a run has begun and when it has grown; empty where it has not."""
    first, *later = report["lives"] or [{}]
    if not later:
        return ""
    begun = "" if first["began"] is None else f" on {first['began'][:10]}"
    grown = (f"it grew on {life['began'][:10]} by {', '.join(life['steps'])}" for life in later)
    return f"Begun{begun} with {', '.join(first['steps'])}; {'; '.join(grown)}."


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Verdicts, then doubts about plan and tables, each a sentence."""
    return [_sentence(text) for text in (*(verdict["text"] for verdict in report["verdicts"]), *report["warnings"])]


def _sentence(text: str) -> str:
    """With a capital where it begins with a word, and not with a path or a γ."""
    first = text.split()[0]
    return f"{text[0].upper() + text[1:] if first.isascii() and first.isalpha() else text}."


def step_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """One line a step: its rows, where it began and ended, its accuracy on held-out rows."""
    heldout = report["heldout"]
    accuracy = heldout["reference_free_accuracy"]
    heading = ("step", "rows", "dropped", "updates", "mean γ_ref", "first loss", "last loss")
    yield (*heading, *(f"acc {name}" for name in heldout["sets"]))
    yield ("M_0", "", "", "", "", "", "", *(number(value, ".3f") for value in accuracy[0]))
    for index, step in enumerate(report["steps"], 1):
        gamma_ref = step["gamma_ref"] or {"mean": None}
        yield (
            f"M_{index} {step['name']}",
            f"{step['num_rows']:,}" if step["num_rows"] else "not made yet",
            number(step["num_dropped"], ","),
            number(step["num_optimizer_steps"], ","),
            number(gamma_ref["mean"], "+.2f"),
            number(step["first_loss"], ".4f"),
            number(step["final_loss"], ".4f"),
            *(number(value, ".3f") for value in accuracy[index]),
        )


def drift_rows(report: Mapping[str, Any], kind: str) -> Iterator[Row]:
    """Each model after M_0 against M_0, set by set, in nats."""
    block = report[kind]
    yield "against M_0, in nats", "set", *(heading for _, heading, _ in DRIFT)
    for column, name in enumerate(block["sets"]):
        for row, model in enumerate(report["models"]):
            if row and block["log_ratio_margin"][row][column] is not None:
                yield model, name, *(number(block[key][row][column], spec) for key, _, spec in DRIFT)


def change_rows(report: Mapping[str, Any], kind: str) -> Iterator[Row]:
    """What each step changed on each set, pair by pair; the intervals of means are symmetric."""
    yield "changed by", "set", "pairs", "Δγ, mean", "± 95 %", "Δγ, quartiles", "Δacc", "± 95 %", "lost", "won"
    for change in report["changes"]:
        if change["kind"] == kind:
            gamma, accuracy = change["gamma"], change["accuracy"]
            yield (
                f"step {change['step']} {report['steps'][change['step'] - 1]['name']}",
                change["set"],
                f"{change['num_rows']:,}",
                f"{gamma['value']:+.2f}",
                f"{(gamma['high'] - gamma['low']) / 2:.2f}",
                f"{change['q25']:+.2f}, {change['median']:+.2f}, {change['q75']:+.2f}",
                f"{accuracy['value']:+.3f}",
                f"{(accuracy['high'] - accuracy['low']) / 2:.3f}",
                f"{change['lost']:.3f}",
                f"{change['won']:.3f}",
            )


def ordering_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """The sources, easy to hard."""
    yield "easy to hard", "rows", "reference-free accuracy of M_0", "95 %"
    for rank in report["ordering"]:
        interval = f"{rank['low']:.3f} to {rank['high']:.3f}"
        yield rank["source"], f"{rank['num_rows']:,}", f"{rank['accuracy']:.3f}", interval


def rated_rows(report: Mapping[str, Any]) -> list[Row]:
    """The sources, easy to hard, where a column of the data orders them; nothing elsewhere."""
    rows = [(source["source"], f"{source['num_rows']:,}", f"{source['mean']:.4g}") for source in report["rated"]]
    return [("easy to hard", "rows", f"mean {report['partition']['column']}"), *rows] if rows else []


def left_out_rows(report: Mapping[str, Any]) -> list[Row]:
    """What no step trains on; nothing where no row is left out."""
    rows = [
        (part["source"], f"{part['num_rows']:,}", f"{part['of_rows']:,}", part["key"]) for part in report["left_out"]
    ]
    return [("source", "rows left out", "of", "by"), *rows] if rows else []


def data_check_rows(report: Mapping[str, Any]) -> list[Row]:
    """What was looked for in the pairs of each source before the first step. Empty: nothing was."""
    checks = report["data_checks"]
    return [] if checks is None else check_rows([checked(SourceChecks, source) for source in checks["sources"]])


def refresh_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """One line for each step whose reference moves: when it was made again, and what that cost."""
    yield "step", "refreshed", "times", "after updates", "nats from the policy", "rows computed", "seconds"
    for step in report["steps"]:
        rule, made = step["reference_refresh"], step["refreshes"]
        if rule is not None:
            every, distances = rule["every"], [refresh["kl"] for refresh in made if refresh["kl"] is not None]
            yield (
                step["name"],
                f"above {rule['kl_above']:g} nats" if every is None else f"every {every:,} updates",
                f"{len(made):,}",
                _some([f"{refresh['update']:,}" for refresh in made]),
                f"{min(distances):.3g} to {max(distances):.3g}" if distances else "–",
                f"{sum(refresh['num_rows'] for refresh in made):,}",
                number(step["refresh_seconds"], ",.1f"),
            )


def _some(names: Sequence[str]) -> str:
    """The first of them, and the last."""
    shown = names if len(names) <= MOST_SHOWN else [*names[: MOST_SHOWN - 1], "…", names[-1]]
    return ", ".join(shown) or "–"


def cached(report: Mapping[str, Any]) -> str:
    """Which tables were not computed; empty where all were."""
    found = [path.removeprefix("sdpo/").removesuffix(".safetensors") for path in report["from_cache"]]
    return f"Read from sdpo.reference_cache, and not computed: {', '.join(found)}." if found else ""


def time_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """Seconds of each step, and of all; those of diagnostics are what the matrices cost."""
    keys = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds")
    yield "seconds", "reference and held out", "diagnostics", "training", "export"
    steps = report["steps"]
    for step in steps:
        yield step["name"], *(number(step[key], ",.1f") for key in keys)
    if len(steps) > 1:
        spent = ([step[key] for step in steps if step[key] is not None] for key in keys)
        yield "all steps", *(number(sum(seconds) if seconds else None, ",.1f") for seconds in spent)
