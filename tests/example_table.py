"""A table whose numbers are not round."""

from typing import Any

import numpy as np

from sdpo_plugin.tables import LogProbTable

DIGEST = "0123456789abcdef" * 4
FIELDS = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")


def make(num_rows: int = 3, **arrays: Any) -> LogProbTable:
    """Row i has log-probs −i − 0.1 and −2i − 0.3 and i + 1 and 2i + 1 tokens; 0.1 and 0.3 are not round in binary."""
    rows = np.arange(num_rows)
    values: dict[str, Any] = {
        "chosen": (-rows - 0.1).astype(np.float32),
        "rejected": (-2 * rows - 0.3).astype(np.float32),
        "chosen_tokens": rows + 1,
        "rejected_tokens": 2 * rows + 1,
    }
    return LogProbTable(**{**values, **arrays}, model="M_1", rows_digest=DIGEST)
