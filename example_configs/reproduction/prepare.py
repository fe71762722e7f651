"""What a seed of the reproduction is made of: base model, training rows with flipped labels, clean held-out rows."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from example_configs.reproduction import base, ranking
from example_configs.reproduction.base import words
from example_configs.reproduction.measure import encode_rows, gammas
from example_configs.reproduction.ranking import HELD_OUT_ROWS, SOURCES, TRAINING_ROWS, Rows, World, flip


def write_rows(path: Path, rows: Rows) -> None:
    """Write rows as JSON Lines with the columns of `chat_template.default`."""
    texts = zip(words(rows.prompts), words(rows.chosen), words(rows.rejected), strict=True)
    lines = (
        {
            "messages": [{"role": "user", "content": prompt}],
            "chosen": {"role": "assistant", "content": chosen},
            "rejected": {"role": "assistant", "content": rejected},
        }
        for prompt, chosen, rejected in texts
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def made_from(seed: int) -> dict[str, Any]:
    """All that the files of a seed depend on, as JSON types."""
    task = {key: value for key, value in vars(ranking).items() if key.isupper() and isinstance(value, int | float)}
    sft = {"updates": base.UPDATES, "batch": base.BATCH, "learning_rate": base.LEARNING_RATE, "warmup": base.WARMUP}
    found: dict[str, Any] = json.loads(
        json.dumps({"seed": seed, "sources": [asdict(s) for s in SOURCES], **task, **sft})
    )
    return found


def prepare(folder: Path, seed: int) -> dict[str, Any]:
    """Make the data and the base model of a seed, where they are not made already.

    Returns:
        What `base.json`, the last file, says: what all was made from, and the base model's accuracies by source.
    """
    done, said = folder / "base.json", made_from(seed)
    if done.is_file() and json.loads(done.read_text("utf-8"))["made_from"] == said:
        return dict(json.loads(done.read_text("utf-8")))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    world = World(seed)
    for source in SOURCES:
        rows = world.preference_rows(source, TRAINING_ROWS)
        write_rows(folder / f"{source.name}.jsonl", flip(rows, source.noise, world.rng))
        write_rows(folder / f"{source.name}_test.jsonl", world.preference_rows(source, HELD_OUT_ROWS))
    tokenizer = base.build_tokenizer()
    model, loss = base.train_base(world, tokenizer, seed)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    names = [source.name for source in SOURCES]
    on_training_rows = gammas(folder / "base", folder, encode_rows(folder, "", names))
    accuracies = {name: float(np.mean(values > 0)) for name, values in on_training_rows.items()}
    known = {"made_from": said, "sft_loss": loss, "accuracy_on_training_rows": accuracies}
    done.write_text(json.dumps(known), "utf-8")
    return known
