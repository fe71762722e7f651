"""The table of D_t holds the log-probs that the host's own functions and an independent program compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from integration_tests.harness.data import Config, base_config, write_config
from integration_tests.harness.expected_log_probs import Pairs, expect_table, mean_off, off, read_table
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import PADDED, read_report, run_sdpo, sdpo_config

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def tokens_of(out: Path, step: str) -> Pairs:
    """Completion tokens of D_t, shape (rows, 2)."""
    arrays = load_file(out / "sdpo" / "reference" / f"{step}.safetensors")
    return np.stack([arrays["chosen_tokens"], arrays["rejected_tokens"]], axis=1).astype(np.float64)


def test_reference_pass_equals_trl(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Every row once, with TRL's numbers: to the bit in the same batches, to rounding in others."""
    path = write_config(
        tmp_path / "config.yaml",
        sdpo_config(base_config(model, two_sets, tmp_path), sdpo=PADDED | {"diagnostics": {"matrix": False}}),
    )
    found = host.python("integration_tests.harness.reference_batches:compare_with_trl", path, [1, 4, 7])
    assert found["rows"] is True
    assert found["batches"] == [4] * 6  # 24 rows: the two that are too long are out
    assert found["own batches"] <= 1e-5  # measured: 0.0
    # float32, another width of padding, log-probs of 128 nats. Measured: 1.5e-5
    assert max(found["file order"].values()) <= 1e-4


def test_rows_that_are_cut_make_no_batch_larger(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """With `skip_prepare_dataset` the host drops no row: the longest are cut, and count as long as they are then."""
    made = sdpo_config(base_config(model, two_sets, tmp_path, skip_prepare_dataset=True))
    path = write_config(tmp_path / "config.yaml", made | {"sdpo": {"packed": True, "diagnostics": {"matrix": False}}})
    found = host.python("integration_tests.harness.reference_batches:packed_tokens", path)
    assert found["longest"] > 2 * made["sequence_len"]
    assert max(found["batches"]) == found["batches"][0] > 0
    assert len(found["batches"]) > 2


def test_reference_is_not_rounded_under_deepspeed(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """In bfloat16 the host rounds what a batch has: -300.123 to 7 bits behind the first, in steps of 2."""
    path = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path)))
    found = host.python("integration_tests.harness.reference_batches:under_deepspeed_in_bfloat16", path)
    assert found["other"] == [-300.0, -1.25]
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert found[name] == pytest.approx([-300.123, -1.25], abs=1e-4)


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


def test_every_number_of_the_report_is_that_of_the_models_as_exported(
    host: Host, model: Path, config: Config, out: Path
) -> None:
    """Each D_j under each M_t by an independent program, row by row, and from that every cell of every matrix."""
    report, prepared, models = read_report(out), Path(config["dataset_prepared_path"]), [model, out / "step-1", out]
    for column, rows in enumerate((24, 32)):
        found = expect_table(host, prepared, rows, *models)
        gammas = [table[:, 0] - table[:, 1] for table in found]
        base, base_gamma, tokens = found[0], gammas[0], tokens_of(out, f"step-{column + 1}")
        # A row with γ, or a change of γ, within rounding of 0 could fall on either side; here none is.
        assert min(np.abs(gamma).min() for gamma in gammas) > 1e-3
        assert min(np.abs(gamma - base_gamma).min() for gamma in gammas[1:]) > 1e-4
        for row, (table, gamma) in enumerate(zip(found, gammas, strict=True)):
            expected = {
                "gamma": gamma.mean(),
                **{f"gamma_{name}": np.quantile(gamma, at) for name, at in QUANTILES.items()},
                "gamma_per_token": np.subtract(*(table / tokens).T).mean(),
                "chosen_log_prob_per_token": (table / tokens)[:, 0].mean(),
                "rejected_log_prob_per_token": (table / tokens)[:, 1].mean(),
                "reference_free_accuracy": (gamma > 0).mean(),
            }
            if row:
                ratio = table - base
                expected |= {
                    "implicit_reward_accuracy": (gamma > base_gamma).mean(),
                    "log_ratio_margin": (gamma - base_gamma).mean(),
                    "chosen_log_ratio": ratio[:, 0].mean(),
                    "rejected_log_ratio": ratio[:, 1].mean(),
                    "kl_to_base": (ratio**2).mean() / 2,
                }
            cells = {name: report["train"][name][row][column] for name in expected}
            assert cells == pytest.approx(expected, abs=1e-4, rel=1e-4)
    for number, step in enumerate(report["steps"]):
        assert step["gamma_ref"]["mean"] == pytest.approx(report["train"]["gamma"][number][number])
