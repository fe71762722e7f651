"""What ten million rows cost a scoring pass beside the model: its batches, and the table of its numbers.

    python -m integration_tests.benchmarks.score_millions [rows]

Rows of made-up lengths, log-probs of made-up numbers; seconds, and memory above the rows' own facts.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from sdpo_plugin.batches import batches
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.tables import TableBuilder

MICRO_BATCH = 4


def megabytes() -> float:
    """The most that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Cut, then collect batch by batch, as a rank does from all ranks' arrays."""
    count = int(sys.argv[1] if len(sys.argv) > 1 else 10_000_000)
    draw = np.random.default_rng(0)
    prompts, chosen, rejected = (draw.integers(1, most, count) for most in (300, 200, 200))
    keys = np.arange(count, dtype=np.uint64)
    both = chosen + rejected
    facts = RowFacts(keys, keys, prompts + np.maximum(chosen, rejected), prompts + both, both)
    before, began = megabytes(), time.perf_counter()
    dealt = batches(facts, MICRO_BATCH, by_tokens=True)
    print(f"{count:,} rows in {len(dealt):,} batches: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    mine = [(dealt.rows(number), np.zeros((2, len(dealt.rows(number))), np.float32)) for number in range(len(dealt))]
    rows, log_probs = (np.concatenate(column, axis=-1) for column in zip(*mine, strict=True))
    builder = TableBuilder(count)
    builder.fill(rows, log_probs, np.ones(log_probs.shape, np.int64))
    builder.finish("M_0", facts.digest(), "made-up rows")
    print(f"their numbers, collected: {time.perf_counter() - began:.1f} s; {megabytes() - before:.0f} MB in all")


if __name__ == "__main__":
    main()
