"""The layout of an output directory."""

from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.run_dir.paths import RunDir
from tests.fakes import make_plan


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (lambda run, step: run.folder, "sdpo"),
        (lambda run, step: run.plan, "sdpo/plan.json"),
        (lambda run, step: run.ledger, "sdpo/ledger.json"),
        (lambda run, step: run.lock, "sdpo/lock"),
        (lambda run, step: run.report, "sdpo/report.json"),
        (lambda run, step: run.base_adapter, "sdpo/start"),
        (lambda run, step: run.staging, "sdpo/staging"),
        (lambda run, step: run.pool(1), "sdpo/pool/source-1.safetensors"),
        (lambda run, step: run.reference(step), "sdpo/reference/step-2.safetensors"),
        (lambda run, step: run.log_probs("M_0", step), "sdpo/log-probs/M_0-step-2.safetensors"),
        (lambda run, step: run.heldout("M_1", 0), "sdpo/heldout/M_1-1.safetensors"),
        (lambda run, step: run.history(step), "sdpo/history/step-2.json"),
        (lambda run, step: run.step(step), "step-2"),
    ],
    ids="records plan ledger lock report start staging pool reference log-probs heldout history step".split(),
)
def test_layout(path: Any, expected: str) -> None:
    assert path(RunDir(Path("out")), make_plan().steps[1]) == Path("out") / expected


def test_tables_lie_in_the_folders_that_hold_tables(run_dir: RunDir) -> None:
    step = make_plan().steps[0]
    paths = (
        run_dir.pool(1),
        run_dir.reference(step),
        run_dir.log_probs("M_0", step),
        run_dir.heldout("M_0", 0),
        run_dir.sample("M_0", step),
    )
    assert tuple(path.parent for path in paths) == run_dir.tables


def test_ledger_calls_a_file_by_its_path_below_the_output_directory(run_dir: RunDir) -> None:
    assert run_dir.key(run_dir.reference(make_plan().steps[1])) == "sdpo/reference/step-2.safetensors"
