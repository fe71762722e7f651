"""The table of D_t holds the log-probs that the host's own functions and an independent program compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.expected_log_probs import expect_table, mean_off, off, read_table
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import PADDED, read_report, run_sdpo, sdpo_config


def test_reference_pass_equals_trl(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Every row once, with TRL's numbers: to the bit in the same batches, to rounding in others."""
    path = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path), sdpo=PADDED))
    found = host.python("integration_tests.harness.reference_batches:compare_with_trl", path, [1, 4, 7])
    assert found["rows"] is True
    assert found["batches"] == [4] * 6  # 24 rows: the two that are too long are out
    assert found["own batches"] <= 1e-5  # measured: 0.0
    # float32, another width of padding, log-probs of 128 nats. Measured: 1.5e-5
    assert max(found["file order"].values()) <= 1e-4


@pytest.fixture(scope="module")
def config(model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two steps, full fine-tuning, in batches of 3: 24 = 8 · 3 rows, and 32 with a rest of 2."""
    return base_config(model, two_sets, tmp_path_factory.mktemp("tables"), num_epochs=2, micro_batch_size=3)


@pytest.fixture(scope="module")
def out(host: Host, config: Config) -> Path:
    """The finished run."""
    return run_sdpo(host, config)


def test_tables_equal_an_independent_program(host: Host, model: Path, config: Config, out: Path) -> None:
    """D_1's table is M_0's, and D_2's is that of M_1 as exported: row by row, in the order of the prepared set."""
    prepared = Path(config["dataset_prepared_path"])
    (base_1,) = expect_table(host, prepared, 24, model)
    base_2, first_2, final_2 = expect_table(host, prepared, 32, model, out / "step-1", out)
    assert off(read_table(out, "step-1"), base_1) <= 1e-4  # measured: 1.5e-5
    assert off(read_table(out, "step-2"), first_2) <= 1e-4  # measured: 3.1e-5
    assert mean_off(read_table(out, "step-2"), base_2) > 1  # measured: 3.3 nats
    assert mean_off(read_table(out, "step-2"), final_2) > 1  # measured: 9.6 nats


def test_report_agrees_with_the_tables(out: Path) -> None:
    """γ of D_t under M_{t-1}, from the files themselves; cells that no table covers are empty."""
    report = read_report(out)
    for number in (1, 2):
        table = read_table(out, f"step-{number}")
        gamma = table[:, 0] - table[:, 1]
        assert report["train"]["gamma"][number - 1][number - 1] == pytest.approx(gamma.mean())
        assert report["train"]["reference_free_accuracy"][number - 1][number - 1] == pytest.approx((gamma > 0).mean())
        assert report["steps"][number - 1]["gamma_ref"]["mean"] == pytest.approx(gamma.mean())
    assert report["train"]["gamma"][0][1] is report["train"]["gamma"][1][0] is report["train"]["gamma"][2][0] is None
