"""Local benchmarks for lm-eval: task files over a few rows, and what a plain loop over a loaded model finds of them."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from integration_tests.harness.data import BAD, GOOD, Config, Row, pairs, write_rows
from integration_tests.harness.probes import load, log_probs

CHOICE, WRITE, BROKEN = "demo_choice", "demo_write", "demo_broken"
NEW_TOKENS = 6
_CHOICE = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
_BROKEN = "process_results: !function functions.broken\n"
_WRITE = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["<|im_end|>"], max_gen_toks: {new_tokens}, do_sample: false}}
process_results: !function functions.letters
metric_list:
  - {{metric: letters, aggregation: mean, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
_FUNCTIONS = """
def letters(doc, results):
    return {"letters": len(results[0])}


def broken(doc, results):
    raise ValueError("no answer to https://user:secret@example.org/" + doc["question"].split()[0])
"""


def write_tasks(folder: Path, rows: int, extra: str = "") -> Path:
    """Write three tasks into `folder/tasks`: one of two choices, one that writes, one whose metric breaks.

    `extra` is a further line of the first.
    """
    asked = [
        {"question": row["question"], "choices": [f"{GOOD[i % 6]} {row['chosen']}", BAD[i % 6]], "label": i % 2}
        for i, row in enumerate(pairs(rows, 7))
    ]
    write_rows(folder / "rows.jsonl", asked)
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "functions.py").write_text(_FUNCTIONS)
    place = {"rows": folder / "rows.jsonl", "new_tokens": NEW_TOKENS}
    (tasks / "choice.yaml").write_text(_CHOICE.format(task=CHOICE, **place) + extra)
    (tasks / "broken.yaml").write_text(_CHOICE.format(task=BROKEN, **place) + _BROKEN)
    (tasks / "write.yaml").write_text(_WRITE.format(task=WRITE, **place))
    return tasks


def lm_eval_block(tasks: Path, *entries: str | Config, **overrides: Any) -> Config:
    """An `sdpo:` block that evaluates every model on these tasks."""
    return {"lm_eval": {"tasks": list(entries), "include_path": str(tasks), "batch_size": 4, **overrides}}


def expected(folder: str, rows: Sequence[Row], limit: int | None = None, chat: bool = False) -> dict[str, float]:
    """What a model answers, question by question, without batches, padding or a harness. Runs in a fork.

    The limit holds for the choices; with `chat` every question stands in the chat template.
    """
    model, tokenizer = load(folder)
    asked = [{**row, "question": _in_chat(row["question"]) if chat else row["question"]} for row in rows]
    answers = [
        {"prompt": row["question"], **dict(zip(("chosen", "rejected"), _answers(row, chat), strict=True))}
        for row in asked[:limit]
    ]
    found = log_probs(folder, answers)
    by_length = [
        [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        for scores, row in zip(found, asked, strict=False)
    ]
    letters = [len(_written(model, tokenizer, row["question"])) for row in asked]
    return {
        "acc": _share_of_right(found, asked),
        "acc_norm": _share_of_right(by_length, asked),
        "letters": sum(letters) / len(letters),
    }


def _in_chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def _answers(row: Mapping[str, Any], chat: bool) -> list[str]:
    """lm-eval puts a space before an answer, unless it begins a turn."""
    return [choice if chat else f" {choice}" for choice in row["choices"]]


def _share_of_right(scores: Sequence[Sequence[float]], rows: Sequence[Row]) -> float:
    right = [list(pair).index(max(pair)) == row["label"] for pair, row in zip(scores, rows, strict=False)]
    return sum(right) / len(right)


def _written(model: Any, tokenizer: Any, question: str) -> str:
    """The text that the model writes, token by token."""
    import torch

    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    while ids.shape[1] < start + NEW_TOKENS and ids[0, -1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def standard_error(share: float, number: int) -> float:
    """Of the mean of `number` answers of which this share is right: s / √n, with s² = Σ(x − mean)² / (n − 1)."""
    return math.sqrt(share * (1 - share) / (number - 1))


def states_around_an_evaluation(folder: str) -> list[dict[str, Any]]:
    """All that an evaluation must leave as it was: before one, within it, and after it. Runs in a fork."""
    from sdpo_plugin.host.evaluation.unchanged import unchanged
    from sdpo_plugin.host.forward.attention import set_packed_attention

    model, _ = load(folder)
    model.train()
    model.lm_head.eval()
    set_packed_attention(model)
    before = _state(model)
    with unchanged(model):
        _seed(5)
        within = _state(model)
        model.config.use_cache = not model.config.use_cache
        model.generation_config.max_length = 7
        model.train()
    return [before, within, _state(model)]


def _seed(number: int) -> None:
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _state(model: Any) -> dict[str, Any]:
    """Drawing a number would change what is looked at; so the generators are only read."""
    import numpy as np
    import torch
    from lm_eval import evaluator

    return {
        "training": [model.training, model.lm_head.training],
        "attention": model.config._attn_implementation,
        "cache": model.config.use_cache,
        "generation": model.generation_config.to_dict(),
        "random": [hash(random.getstate()), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],
        "level": logging.getLogger("lm_eval").level,
        "workers": os.environ.get("DISABLE_MULTIPROC"),
        "env_info": evaluator.add_env_info.__name__,
    }


def refusal(tasks: str, name: str, begins: bool = True) -> str | None:
    """The message with which a run that begins, or one that is resumed, is refused; None: it is not. Runs in a fork."""
    from sdpo_plugin.errors import ConfigError
    from sdpo_plugin.host.evaluation.tasks import require_tasks
    from sdpo_plugin.lm_eval_args import LMEvalArgs

    try:
        require_tasks(LMEvalArgs.model_validate({"tasks": [name], "include_path": tasks}), reads_data=begins)
    except ConfigError as error:
        return str(error)
    return None
