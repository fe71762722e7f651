"""How long it takes to lay out a pool of a million rows, and how much memory above the baseline.

    python integration_tests/benchmarks/plan_million.py [rows]

Makes a memory-mapped pool of two tokenized sources in a temporary folder, gives every row a made-up γ, and times
``lay_out`` (partition, D_t, digests, overlaps) for each strategy. A benchmark, not a test: it asserts nothing.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

import numpy as np
import pyarrow as pa
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.columns import row_facts
from sdpo_plugin.host.data.layout import lay_out
from sdpo_plugin.host.data.planning import needs_base_tables
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.tables import LogProbTable

TOKENS = (40, 60, 60)  # prompt, chosen, rejected
STRATEGIES = (
    {"strategy": "random", "num_steps": 3},
    {"strategy": "stratified", "fractions": [0.1667, 0.8333]},
    {"strategy": "easy_to_hard"},
    {"strategy": "easy_to_hard", "unit": "row", "num_steps": 3},
)


def write_source(path: Path, rows: int, seed: int) -> Dataset:
    """A tokenized source on disk, written in pieces so that it never stands in memory."""
    generator = np.random.default_rng(seed)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, rows, 10_000):
            count = min(10_000, rows - start)
            columns = [
                pa.ListArray.from_arrays(
                    pa.array(np.arange(0, (count + 1) * length, length, dtype=np.int32)),
                    pa.array(generator.integers(0, 32_000, count * length, dtype=np.int32)),
                )
                for length in TOKENS
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return Dataset.from_file(str(path))


def made_up_table(rows: int, seed: int) -> LogProbTable:
    """Made-up log-probs."""
    chosen, rejected = np.random.default_rng(seed).normal(size=(2, rows)).astype(np.float32)
    tokens = np.full(rows, TOKENS[1])
    return LogProbTable(chosen, rejected, tokens, tokens, model="M_0", rows_digest="")


def rss_mb(peak: bool = False) -> float:
    """Memory of this process in MB, now or at its peak, without pages of memory-mapped files."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    anonymous = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(anonymous[0].split()[1]) / 1024


def main(rows: int) -> None:
    """Print seconds and memory of each strategy."""
    sizes = (rows * 2 // 3, rows - rows * 2 // 3)
    cfg = DictDefault({"base_model": "base", "num_epochs": 1, "batch_size": 32})
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, size in enumerate(sizes):
            train = write_source(Path(folder) / f"{number}.arrow", size, number)
            entry = DictDefault({"path": f"source-{number}"})
            source_cfg = DictDefault({**cfg, "datasets": [entry]})
            start = time.perf_counter()
            facts = row_facts(train)  # once a run, whatever the strategy
            print(f"keys of {size:,} rows: {time.perf_counter() - start:.1f} s")
            sources.append(TokenizedSource(f"step-{number + 1}", source_cfg, train, facts, {}, 0, 0, {}))
        tables = [made_up_table(size, number) for number, size in enumerate(sizes)]
        print(f"{rows:,} rows; memory before: {rss_mb():.0f} MB (peak {rss_mb(peak=True):.0f} MB)")
        for partition in STRATEGIES:
            block = SDPOConfig.model_validate({"partition": partition})
            start, before = time.perf_counter(), rss_mb()
            layout = lay_out(cfg, block, sources, tables if needs_base_tables(block) else ())
            seconds = time.perf_counter() - start
            after = rss_mb()
            print(
                f"{partition}: {seconds:.1f} s, {after - before:+.0f} MB, peak {rss_mb(peak=True):.0f} MB, "
                f"steps of {[step.num_rows for step in layout.plan.steps]}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
