"""Small seeded preference sets, and ordinary `rl: dpo` configs over them. Standard library, and PyYAML to write."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUBJECTS = ("river", "engine", "garden", "letter", "market", "bridge", "window", "forest", "harbor", "kettle")
QUESTIONS = ("what is", "explain", "describe", "why do we need", "compare")
GOOD = ("clear", "short", "careful", "correct", "useful", "kind")
BAD = ("vague", "wrong", "rude", "endless", "careless", "empty")
PLAIN = ("the", "answer", "about", "is", "and", "with", "one", "reason", "then", "because")
WORDS = SUBJECTS + GOOD + BAD + PLAIN + tuple(" ".join(QUESTIONS).split())
TOO_LONG = 400  # words: beyond any sequence length a test uses

Row = dict[str, Any]
Config = dict[str, Any]


def pairs(rows: int, seed: int, long_rows: int = 0) -> list[Row]:
    """`rows` distinct (question, chosen, rejected) triples, with `long_rows` over-long ones among them."""
    rng = random.Random(seed)

    def answer(flavour: Sequence[str], length: int) -> str:
        return " ".join(rng.choice(flavour if rng.random() < 0.4 else PLAIN) for _ in range(length))

    made = [
        {
            "question": f"{rng.choice(QUESTIONS)} {rng.choice(SUBJECTS)} {seed} {index}",
            "chosen": answer(GOOD, rng.randint(3, 16)),
            "rejected": answer(BAD, rng.randint(3, 16)),
        }
        for index in range(rows)
    ]
    for _ in range(long_rows):
        row = {"question": f"describe {len(made)}", "chosen": answer(GOOD, TOO_LONG), "rejected": answer(BAD, 4)}
        made.insert(rng.randint(0, len(made)), row)
    return made


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` has written to a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chat_set(path: Path, rows: int = 12, seed: int = 0, long_rows: int = 0) -> Config:
    """Write a set of `chat_template.default` form; return its `datasets:` entry."""
    write_rows(
        path,
        [
            {
                "messages": [{"role": "user", "content": row["question"]}],
                "chosen": {"role": "assistant", "content": row["chosen"]},
                "rejected": {"role": "assistant", "content": row["rejected"]},
            }
            for row in pairs(rows, seed, long_rows)
        ],
    )
    fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    return {"path": str(path), "ds_type": "json", "split": "train", "type": "chat_template.default", **fields}


def intel_set(path: Path, rows: int = 12, seed: int = 0, long_rows: int = 0) -> Config:
    """Write a set of `chatml.intel` form; return its `datasets:` entry."""
    write_rows(
        path, [{"system": f"be {GOOD[i % len(GOOD)]}", **row} for i, row in enumerate(pairs(rows, seed, long_rows))]
    )
    return {"path": str(path), "ds_type": "json", "split": "train", "type": "chatml.intel"}


def even_set(path: Path, rows: int = 12, seed: int = 0) -> Config:
    """Write a set like `chat_set` whose rows all have the same number of tokens; return its `datasets:` entry.

    A batch of them needs no padding, so that a row's log-probs have the same bits in whatever batch it is computed.
    """
    rng = random.Random(seed)

    def digits(flavour: str) -> str:  # the test tokenizer takes them, and their spaces, for a token each
        return " ".join(rng.choice(flavour if rng.random() < 0.5 else "0123456789") for _ in range(12))

    entry = chat_set(path, 0)
    write_rows(
        path,
        [
            {
                "messages": [{"role": "user", "content": digits("0123456789")}],
                "chosen": {"role": "assistant", "content": digits("02468")},
                "rejected": {"role": "assistant", "content": digits("13579")},
            }
            for _ in range(rows)
        ],
    )
    return entry


def base_config(model_dir: Path, datasets: Sequence[Config], out_dir: Path, **overrides: Any) -> Config:
    """An ordinary `rl: dpo` run on a CPU in float32; an override of None removes the key."""
    config: Config = {
        "base_model": str(model_dir),
        "rl": "dpo",
        "rl_beta": 0.1,
        "chat_template": "tokenizer_default",
        "datasets": [dict(entry) for entry in datasets],
        "dataset_prepared_path": str(out_dir / "prepared"),
        "dataset_num_proc": 0,  # maps in the run's own process; even 1 starts a pool for every map
        "output_dir": str(out_dir / "out"),
        "sequence_len": 128,
        "val_set_size": 0,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1.0e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "seed": 42,
    }
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None}


def lora_config(model_dir: Path, datasets: Sequence[Config], out_dir: Path, **overrides: Any) -> Config:
    """The same with a small LoRA adapter, without dropout so that runs can be compared."""
    adapter = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_linear": True}
    return base_config(model_dir, datasets, out_dir, **(adapter | overrides))


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a config file the host reads."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    return path
