"""The report that the golden files show."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.pair_checks import KINDS, Found, LongerIsChosen, SourceChecks
from sdpo_plugin.plan import OrderedSource, Overlap
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.data_checks import DataChecks, save_checks
from sdpo_plugin.run_dir.paths import RunDir
from tests.fakes import D_1, D_2, FakeHost, make_plan, run

GOLDEN = Path(__file__).parent
# Of the third, of which M_0 is right about 23 of 24, some are drawn.
ROWS = (D_1, D_2, (*(-0.1 * row for row in range(1, 24)), 0.5))
# Of 40 pairs of the first step 2 are identical; in the second the longer answer is chosen 24 times of 25.
CLEAN = dict.fromkeys(KINDS, Found(0))
CHECKS = DataChecks(
    "error",
    (
        SourceChecks("step-1", 40, 3, CLEAN | {"identical": Found(2, (4, 17))}, LongerIsChosen(38, 0.5, 0.348, 0.652)),
        SourceChecks("step-2", 25, None, CLEAN | {"lost": Found()}, LongerIsChosen(25, 0.96, 0.805, 0.993)),
    ),
)
DIAGNOSTICS = {"max_rows": 21, "seed": 42}


def golden_report(out: Path) -> dict[str, Any]:
    """The report of a finished run of three steps in ``out``, with times that are always the same."""
    host, plan = FakeHost(ROWS), make_plan(ROWS, diagnostics=DIAGNOSTICS)
    host.diagnostics = DIAGNOSTICS
    ordering = (OrderedSource("orca.jsonl", 12859, 0.7, 0.6, 0.78), OrderedSource("uf.jsonl", 25, 0.5, 0.31, 0.69))
    plan = dataclasses.replace(
        plan,
        partition={"strategy": "easy_to_hard", "unit": "source"},
        ordering=ordering,
        overlaps=(Overlap("step-1", "held-out val", 3),),
    )
    run(host, RunDir(out), plan)
    save_checks(RunDir(out), CHECKS)
    report = build_report(RunDir(out))
    for step in report["steps"]:
        step |= {key: 60.5 * step["index"] for key in step if key.endswith("_seconds")}
    lm_eval = {model: {"arc_easy": evaluated(value)} for model, value in (("M_0", 0.25), ("M_3", 0.375))}
    return report | {"versions": {"axolotl": "0.19.0", "trl": "1.9.0"}, "lm_eval": lm_eval}


def evaluated(value: float) -> dict[str, Any]:
    """What lm-eval found of a model."""
    metrics = {"acc": {"value": value, "stderr": 0.0625, "higher_is_better": True}}
    results = {"arc_easy": {"metrics": metrics, "num_samples": 40, "num_fewshot": 0}}
    return {"settings": {"limit": 40}, "results": results, "seconds": 1.5, "error": None}


@contextmanager
def small_pictures() -> Iterator[None]:
    """Within this context pictures have few pixels: enough to compare them."""
    from sdpo_plugin.report import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "savefig.dpi", 50)
        yield
