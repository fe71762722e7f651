"""Held-out rows: every model from M_0 to M_T is evaluated on each set, and the report says what a user would find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from integration_tests.harness.data import Config, base_config, chat_set, intel_set
from integration_tests.harness.expected_log_probs import Pairs, expect_table, expect_texts, texts
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config

ROWS = (10, 14)
SPLIT = 4


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """`test_datasets:` of two entries, one of each form."""
    folder = tmp_path_factory.mktemp("heldout")
    return [chat_set(folder / "easy.jsonl", ROWS[0], 11), intel_set(folder / "hard.jsonl", ROWS[1], 12)]


@pytest.fixture(scope="module")
def out(
    host: Host, model: Path, two_sets: list[Config], heldout: list[Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two steps that evaluate on both sets."""
    folder = tmp_path_factory.mktemp("run")
    config = base_config(
        model, two_sets, folder, val_set_size=None, test_datasets=heldout, eval_strategy="epoch", learning_rate=3.0e-3
    )
    return run_sdpo(host, config)


@pytest.fixture(scope="module")
def expected(host: Host, model: Path, heldout: list[Config], out: Path) -> list[list[Pairs]]:
    """The log-probs of the rows of each set, read from its file, under M_0, M_1 and M_2 as loaded from disk."""
    models = [model, out / "step-1", out]
    return [
        list(tables) for tables in zip(*(expect_texts(host, texts(entry), *models) for entry in heldout), strict=True)
    ]


def test_report_equals_an_independent_program(out: Path, expected: list[list[Pairs]]) -> None:
    """A row a model, a column a set."""
    report = read_report(out)
    assert report["heldout"]["sets"] == ["easy", "hard"]
    gammas = [[table[:, 0] - table[:, 1] for table in row] for row in expected]
    accuracies = [[float((gamma > 0).mean()) for gamma in row] for row in gammas]
    means = [[float(gamma.mean()) for gamma in row] for row in gammas]
    # A row with γ within rounding of 0 could fall on either side; here none is.
    assert min(float(np.abs(gamma).min()) for row in gammas for gamma in row) > 1e-3
    assert report["heldout"]["reference_free_accuracy"] == accuracies
    assert np.array(report["heldout"]["gamma"]) == pytest.approx(np.array(means), abs=1e-4)  # measured: 6e-6
    assert len({tuple(row) for row in report["heldout"]["gamma"]}) == 3


def test_markdown_shows_both_sets(out: Path) -> None:
    """The table for reading has the same columns."""
    text = (out / "sdpo" / "report.md").read_text(encoding="utf-8")
    assert "acc easy" in text
    assert "acc hard" in text


@pytest.mark.parametrize(("given", "row"), [("", 2), ("step-1", 1)], ids=["final", "given"])
def test_evaluate_takes_the_final_model_or_the_one_it_is_given(host: Host, out: Path, given: str, row: int) -> None:
    """`axolotl evaluate` with the file of the run, and the same with a model named."""
    config = out.parent / "config.yaml"
    extra = ["--base-model", str(out / given)] if given else []
    log = host.run(["evaluate", str(config), "--launcher", "python", *extra], out.parent).check().log_text
    assert (f"evaluating {out / given}" if given else f"evaluating M_2 from {out}") in log
    _, *lines = (out / "eval_summary.csv").read_text(encoding="utf-8").splitlines()
    found = {name: float(value) for name, _, value in (line.split(",") for line in lines)}
    report = read_report(out)
    for column, name in enumerate(report["heldout"]["sets"]):
        assert found[f"{name}_gamma"] == pytest.approx(report["heldout"]["gamma"][row][column], abs=1e-4)
        assert found[f"{name}_reference_free_accuracy"] == report["heldout"]["reference_free_accuracy"][row][column]
    assert "loss" not in found


# --- names ---


@pytest.fixture(scope="module", params=["its own rows first", "the file first"])
def named(
    request: pytest.FixtureRequest, host: Host, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Step `orca` holds out rows of its own, and another step evaluates on a file called orca."""
    folder = tmp_path_factory.mktemp("named")
    own, other = chat_set(folder / "d1.jsonl", 4 * SPLIT, 1), intel_set(folder / "d2.jsonl", 12, 2)
    test = intel_set(folder / "orca.jsonl", ROWS[0], 11)
    steps: list[Config] = [
        {"name": "orca", "datasets": [own]},
        {"name": "other", "datasets": [other], "test_datasets": [test]},
    ]
    if request.param == "the file first":
        steps.reverse()
    plain = base_config(model, [], folder, val_set_size=0.25, eval_strategy="epoch", learning_rate=3.0e-3)
    out = run_sdpo(host, sdpo_config(plain, datasets=None, sdpo={"steps": steps}))
    return out, [step["name"] for step in steps]


def test_sets_of_one_name_are_two(named: tuple[Path, list[str]], host: Host, model: Path) -> None:
    """In either order: each has its own rows, and so its own table, in what the report says of every model."""
    out, names = named
    sets = ["orca", "orca-2"] if names[0] == "orca" else ["orca-2", "orca"]
    report = read_report(out)
    assert report["heldout"]["sets"] == sets
    plan = json.loads((out / "sdpo/plan.json").read_text(encoding="utf-8"))
    held = {step["name"]: (step["num_rows"], step["num_heldout"]) for step in plan["steps"]}
    assert held == {"orca": (3 * SPLIT, SPLIT), "other": (12, ROWS[0])}
    models = [model, out / names[0], out]
    split = [table[-SPLIT:] for table in expect_table(host, out.parent / "prepared", 4 * SPLIT, *models)]
    file = expect_texts(host, texts({"path": str(out.parent / "orca.jsonl")}), *models)
    tables = {"orca": split, "orca-2": file}
    gammas = [[float(np.subtract(*tables[name][row].T).mean()) for name in sets] for row in range(len(models))]
    assert np.array(report["heldout"]["gamma"]) == pytest.approx(np.array(gammas), abs=1e-4)
    for column, name in enumerate(sets, 1):
        assert len(load_file(out / f"sdpo/heldout/M_0-{column}.safetensors")["chosen"]) == len(tables[name][0])
