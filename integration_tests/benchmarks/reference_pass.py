"""The pass that fills a reference table beside TRL's own, `precompute_ref_log_probs`, over the same rows and model.

    python -m integration_tests.benchmarks.reference_pass --model 25M --rows 80 --repeat 5

Both in one process, in alternation, on a trainer that the host has built.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

import numpy as np
import yaml

from integration_tests.benchmarks.workload import SHAPES, Workload, dpo_config, make_model, sdpo_config, write_set
from integration_tests.harness.reference_batches import build_trainer


def by_trl(trainer: Any, rows: Any, number: int, batch: int) -> np.ndarray:
    """TRL's own function; it looks for its numbers in a cache, by the fingerprint of the data."""
    from trl import DPOTrainer

    anew = copy.copy(rows)
    anew._fingerprint = f"repetition{number}"
    found = DPOTrainer._precompute_ref_logps(trainer, anew, "benchmark", batch)
    return np.array([found["ref_chosen_logps"], found["ref_rejected_logps"]])


def by_us(trainer: Any, rows: Any, batch: int) -> np.ndarray:
    """The pass of a step."""
    from sdpo_plugin.host.forward.table import log_prob_table

    table = log_prob_table(trainer, rows, batch, "M_0", "benchmark")
    return np.array([table.chosen, table.rejected])


def main() -> None:
    """Make the workload and time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="25M", choices=SHAPES)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--set", default="hh")
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    names = (given.set,)
    work = Workload(given.model, given.vocabulary, names, given.rows, given.micro_batch, 1, None, "adamw_torch")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "base", work)
        second = replace(work, rows=4)  # a run has two steps; this one does not come to it
        entries = [write_set(folder / f"D_{t}.jsonl", given.set, each, t) for t, each in ((1, work), (2, second))]
        config = sdpo_config(dpo_config(work, folder / "base", entries, folder), packed=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        trainer = build_trainer(str(folder / "config.yaml"))
        from sdpo_plugin.host.forward.packed import forward_pass

        setup = trainer.chain.args[1]
        rows, size = setup.sources[0].train, given.micro_batch
        trainer.model.eval()
        seconds: dict[str, list[float]] = {"TRL": [], "packed": []}
        for number in range(given.repeat):
            began = time.perf_counter()
            theirs = by_trl(trainer, rows, number, size)
            middle = time.perf_counter()
            with forward_pass(trainer, True, setup.rows):
                tried = time.perf_counter()
                ours = by_us(trainer, rows, size)
            seconds["TRL"].append(middle - began)
            seconds["packed"].append(time.perf_counter() - tried)
            print(f"TRL {seconds['TRL'][-1]:.2f} s, packed {seconds['packed'][-1]:.2f} s", flush=True)
        speeds = {side: len(rows) / statistics.median(of_side) for side, of_side in seconds.items()}
        print(", ".join(f"{side} {speed:.2f} pairs/s" for side, speed in speeds.items()))
        times, off = speeds["packed"] / speeds["TRL"], abs(ours - theirs).max()
        print(f"{times:.2f} times as fast; log-probs within {off:.1e} nats")


if __name__ == "__main__":
    main()
