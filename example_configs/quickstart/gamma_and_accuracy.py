"""Mean γ and accuracy of a model on preference rows, with transformers alone.

γ(x) = log p(chosen | prompt) - log p(rejected | prompt), summed over the tokens of the
answer including the closing token. Accuracy is the share of rows with γ > 0.

    python example_configs/quickstart/gamma_and_accuracy.py MODEL_DIR ROWS.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def answer_log_probs(model: Any, tokenizer: Any, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the summed log-probs of each answer, given its prompt."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    attention = torch.zeros((len(pairs), width), dtype=torch.long)
    counted = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attention[row, :end] = 1
        counted[row, len(prompt) : end] = True
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (log_probs * counted[:, 1:]).sum(-1)


def encode(tokenizer: Any, row: dict[str, Any], side: str) -> tuple[list[int], list[int]]:
    """Return the token ids of the prompt and of one side's answer."""
    prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*row["messages"], row[side]], tokenize=False)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if whole_ids[: len(prompt_ids)] != prompt_ids:
        raise ValueError("the chat template changes the prompt when an answer follows")
    return prompt_ids, whole_ids[len(prompt_ids) :]


def gammas(model: Any, tokenizer: Any, rows: list[dict[str, Any]], batch_size: int = 128) -> torch.Tensor:
    """Return γ of every row under a model."""
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        pairs = [encode(tokenizer, row, s) for s in ("chosen", "rejected") for row in batch]
        with torch.no_grad():
            chosen, rejected = answer_log_probs(model, tokenizer, pairs).chunk(2)
        parts.append(chosen - rejected)
    return torch.cat(parts)


def gamma_and_accuracy(model_dir: str, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean γ and the accuracy of a saved model on `rows`."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    values = gammas(model, AutoTokenizer.from_pretrained(model_dir), rows)
    return values.mean().item(), (values > 0).float().mean().item()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    mean_gamma, accuracy = gamma_and_accuracy(sys.argv[1], read_rows(sys.argv[2]))
    print(f"mean gamma {mean_gamma:+.3f}, accuracy {accuracy:.3f}")
