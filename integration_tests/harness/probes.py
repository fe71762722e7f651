"""Questions that tests ask about weights on disk; each function runs in a fork: `host.python("…probes:name", …)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.stored_weights import differences, weight_files

if TYPE_CHECKING:
    import torch


def weights(folder: str) -> dict[str, torch.Tensor]:
    """Every tensor of a saved model or adapter, by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in weight_files(Path(folder)) for name, tensor in load_file(path).items()}


def max_abs_diff(one: str, other: str) -> float:
    """The largest difference of any weight."""
    return differences(one, other)["max"]


def summary(folder: str) -> dict[str, Any]:
    """Number of tensors and values, data types, and whether every value is finite."""
    tensors = weights(folder)
    return {
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": sorted({str(tensor.dtype) for tensor in tensors.values()}),
        "finite": all(bool(tensor.isfinite().all()) for tensor in tensors.values()),
    }


def pairs_by_deepspeed(checkpoint: str) -> int:
    """The pairs that the engine of a ZeRO-3 checkpoint has counted: updates, times what it takes for their batch."""
    import torch

    (state,) = Path(checkpoint).glob("global_step*/zero_pp_rank_0_mp_rank_00_model_states.pt")
    return int(torch.load(state, weights_only=False)["global_samples"])


def load(folder: str, by_peft: bool = True) -> tuple[Any, Any]:
    """Model and tokenizer as a user loads them: full weights, or an adapter on the base model it names.

    Without `by_peft` an adapter is left to transformers, which reads its config too.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if by_peft and (Path(folder) / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


def load_ok(folder: str) -> dict[str, Any]:
    """Load model and tokenizer and run them once; say what was loaded."""
    import torch

    model, tokenizer = load(folder)
    with torch.no_grad():
        logits = model(**tokenizer("what is one river", return_tensors="pt")).logits
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{folder} yields logits that are not finite")
    return {
        "class": type(model).__name__,
        "vocab": logits.shape[-1],
        "tokens": len(tokenizer),
        "pad": tokenizer.pad_token,
        "eos": tokenizer.eos_token,
    }


def log_probs(folder: str, rows: Sequence[Mapping[str, str]], by_peft: bool = True) -> list[list[float]]:
    """[chosen, rejected] summed log-probs of rows of `prompt`, `chosen`, `rejected` texts, each row by itself.

    Written from the definition, with no padding, batching or trainer: it shares no code with what it measures.
    """
    import torch

    model, tokenizer = load(folder, by_peft)

    def log_prob(prompt: str, completion: str) -> float:
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        end = tokenizer(completion, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([start + end])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
        picked = log_probs.gather(-1, ids[0, 1:, None])[:, 0]
        return float(picked[len(start) - 1 :].sum())

    return [[log_prob(row["prompt"], row["chosen"]), log_prob(row["prompt"], row["rejected"])] for row in rows]
