"""The start gate decides alike on all ranks: if one raised while the others train, they would wait for it."""

from __future__ import annotations

from pathlib import Path

from integration_tests.harness.data import base_config, chat_set, intel_set, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.zero3 import write_zero3
from sdpo_plugin.gate import FULL_PRECISION_NATS, tolerance_nats

PAIRS = 4  # of one rank's batch


def test_the_longest_row_of_all_ranks_sets_the_tolerance(host: Host, model: Path, tmp_path: Path) -> None:
    """One row of the first batch is longer than all others by far, and only one of the two ranks has it."""
    sets = [chat_set(tmp_path / "d1.jsonl", 2 * PAIRS - 1, 1, long_rows=1), intel_set(tmp_path / "d2.jsonl", 8, 2)]
    ranks = {"deepspeed": str(write_zero3(tmp_path / "zero3.json")), "micro_batch_size": PAIRS}
    plain = base_config(model, sets, tmp_path, **ranks, sequence_len=4096)
    config = write_config(tmp_path / "config.yaml", sdpo_config(plain, plugins=PLUGINS))
    train(host, config, f"gate:{tmp_path}", ranks=2).check()
    one, other = ((tmp_path / f"rank-{rank}").read_text(encoding="utf-8").splitlines() for rank in (0, 1))
    assert one == other
    tolerances = {step: float(value) for step, value in (line.split() for line in one)}
    assert tolerances["step-1"] > tolerances["step-2"] == FULL_PRECISION_NATS == tolerance_nats(False, 512)
