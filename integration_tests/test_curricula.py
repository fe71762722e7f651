"""Curricula of `sdpo.partition` on the real host: each equals separate `rl: dpo` runs whose data sets a script has cut.

The script below knows nothing of the plugin: it asks each model for the log-probs of the texts, and sorts lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, chat_set, read_rows, write_rows
from integration_tests.harness.expected_log_probs import expect_texts, texts
from integration_tests.harness.host_runs import run_chain
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import read_report, run_sdpo, sdpo_config

# The host shuffles what it merges; here a row of the pool is a line of the file.
SGD = {"optimizer": "sgd", "learning_rate": 1.0e-2, "shuffle_merged_datasets": False}
BY_ROW = {"strategy": "easy_to_hard", "unit": "row"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("curricula")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Config:
    """24 rows, none too long."""
    return chat_set(folder / "pool.jsonl", 24, 5)


def gammas(host: Host, pool: Config, model: Path) -> Any:
    """γ of each line of the pool under a model."""
    (table,) = expect_texts(host, texts(pool), model)
    return table[:, 0] - table[:, 1]


def cut(pool: Config, lines: Any, path: Path) -> Config:
    """An entry that has these lines of the pool, in their order there."""
    rows = read_rows(Path(pool["path"]))
    write_rows(path, [rows[line] for line in sorted(lines)])
    return {**pool, "path": str(path)}


def train(host: Host, model: Path, entry: Config, out: Path, **partition: Any) -> Path:
    """The run with the curriculum."""
    config = base_config(model, [entry], out, **SGD)
    return run_sdpo(host, sdpo_config(config, sdpo={"partition": {**BY_ROW, **partition}}))


def test_steps_that_grow_without_the_hardest_rows(host: Host, model: Path, folder: Path, pool: Config) -> None:
    """A quarter of 24 rows is left out; of the other 18 step 1 has the easiest 9 and step 2 all."""
    out = train(host, model, pool, folder / "grow", num_steps=2, pool="cumulative", drop_hardest=0.25)
    ranked = np.argsort(-gammas(host, pool, model), kind="stable")
    sets = [cut(pool, ranked[:number], folder / f"grow-{number}.jsonl") for number in (9, 18)]
    chain = run_chain(host, base_config(model, sets, folder / "grow-by-hand", **SGD), sets, folder / "grow-by-hand")
    for number, by_hand in enumerate(chain, 1):
        assert apart(host, out / f"step-{number}", by_hand) <= 1e-6
    report = read_report(out)
    assert [step["num_rows"] for step in report["steps"]] == [9, 18]
    (left_out,) = report["left_out"]
    assert left_out == {"source": f"{pool['path']}:train", "num_rows": 6, "of_rows": 24, "key": "drop_hardest"}
    assert report["overlaps"] == []
    assert None not in (cell for line in report["train"]["gamma"] for cell in line)
