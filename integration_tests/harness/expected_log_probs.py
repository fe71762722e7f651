"""Reference tables, and the log-probs expected in them: each row by itself, under the model as a user loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from integration_tests.harness.data import Config, read_rows
from integration_tests.harness.probes import log_probs

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host

Pairs = NDArray[np.float64]


def read_table(out: Path, step: str) -> Pairs:
    """The reference table of a step, shape (rows, 2): chosen, rejected, in nats."""
    arrays = load_file(out / "sdpo" / "reference" / f"{step}.safetensors")
    return np.stack([arrays["chosen"], arrays["rejected"]], axis=1).astype(np.float64)


def log_probs_prepared(folders: Sequence[str], prepared: str, rows: int) -> list[list[list[float]]]:
    """Log-probs of the set of `rows` rows that the host prepared, in its order, by each model. Runs in the child."""
    texts = prepared_texts(prepared, rows)
    return [log_probs(folder, texts) for folder in folders]


def prepared_texts(prepared: str, rows: int) -> list[dict[str, str]]:
    """The set of `rows` rows that the host prepared, as texts, in its order. Runs in the child."""
    from datasets import load_from_disk

    found = [load_from_disk(str(path.parent)) for path in Path(prepared).glob("*/dataset_info.json")]
    candidates = [candidate.to_list() for candidate in found if len(candidate) == rows]
    # A run of plain `rl: dpo` beside ours prepares the same rows under a name of its own.
    assert candidates, f"no prepared set has {rows} rows"
    assert all(candidate == candidates[0] for candidate in candidates), "which of these sets is meant?"
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in candidates[0]]


def expect_table(host: Host, prepared: Path, rows: int, *models: Path) -> list[Pairs]:
    """The table of the prepared set of `rows` rows under each model."""
    found = host.python("integration_tests.harness.expected_log_probs:log_probs_prepared", models, prepared, rows)
    return [np.array(one) for one in found]


def texts(entry: Config) -> list[dict[str, str]]:
    """The rows of a `chat_set` or `intel_set` file as texts: ChatML, spelled out once more."""
    made = []
    for row in read_rows(Path(entry["path"])):
        chat = "messages" in row
        question = row["messages"][0]["content"] if chat else row["question"]
        system = f"<|im_start|>system\n{row['system']}<|im_end|>\n" if row.get("system") else ""
        answers = {side: row[side]["content"] if chat else row[side] for side in ("chosen", "rejected")}
        made.append(
            {"prompt": f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"}
            | {side: f"{answer}<|im_end|>" for side, answer in answers.items()}
        )
    return made


def expect_texts(host: Host, rows: Sequence[dict[str, str]], *models: Path) -> list[Pairs]:
    """The log-probs of rows of text under each model."""
    found = [host.python("integration_tests.harness.probes:log_probs", model, list(rows)) for model in models]
    return [np.array(one) for one in found]


def off(table: Pairs, other: Pairs) -> float:
    """The largest difference of two tables, in nats."""
    assert table.shape == other.shape
    return float(np.abs(table - other).max())


def mean_off(table: Pairs, other: Pairs) -> float:
    """The mean difference of two tables, in nats."""
    assert table.shape == other.shape
    return float(np.abs(table - other).mean())
