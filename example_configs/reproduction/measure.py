"""γ of a model on rows of the task, each model loaded from its directory and run by transformers alone."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from example_configs.quickstart.gamma_and_accuracy import answer_log_probs, encode, read_rows

Encoded = list[tuple[list[int], list[int]]]
Gammas = dict[str, NDArray[np.float64]]
BATCH = 1000


def encode_rows(folder: Path, suffix: str, names: list[str]) -> dict[str, tuple[Encoded, Encoded]]:
    """Token ids of both sides of every row in `<name><suffix>.jsonl`, by name."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = {name: read_rows(folder / f"{name}{suffix}.jsonl") for name in names}
    return {
        name: tuple([encode(tokenizer, row, side) for row in of_one] for side in ("chosen", "rejected"))  # type: ignore[misc]
        for name, of_one in rows.items()
    }


def gammas(model_dir: Path, folder: Path, encoded: dict[str, tuple[Encoded, Encoded]]) -> Gammas:
    """γ of each row under a saved model, in nats, by name of the source."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")

    def log_probs(side: Encoded) -> torch.Tensor:
        batches = (side[start : start + BATCH] for start in range(0, len(side), BATCH))
        return torch.cat([answer_log_probs(model, tokenizer, batch) for batch in batches])

    with torch.no_grad():
        return {
            name: (log_probs(chosen) - log_probs(rejected)).double().numpy()
            for name, (chosen, rejected) in encoded.items()
        }


def figures(after: Gammas, base: Gammas) -> dict[str, float]:
    """The figures of one model: a mean over the sources of each, and reference-free accuracy by source."""
    return {
        "reference_free_accuracy": float(np.mean([(after[name] > 0).mean() for name in after])),
        "implicit_reward_accuracy": float(np.mean([(after[name] > base[name]).mean() for name in after])),
        "gamma": float(np.mean([after[name].mean() for name in after])),
        **{f"reference_free_accuracy/{name}": float((after[name] > 0).mean()) for name in after},
    }
