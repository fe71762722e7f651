"""One BOS at the beginning of a prompt."""

import logging
from typing import Any

import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger("axolotl.sdpo_plugin")


def with_one_bos(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, num_proc: int | None) -> Dataset:
    """Drop the BOS that the tokenizer adds in front of a prompt that a chat template has begun with it, and say so.

    The host means to (`AxolotlDPOTrainer._tokenize`), but TRL 1.9 has no such method to override. A prompt that has two
    for another reason, in its own text, is left as it is.

    Args:
        dataset: tokenized rows.
        tokenizer: what they were tokenized with.
        name: of the set, for the log.
        num_proc: worker processes, as `datasets` takes them.
    """
    bos = tokenizer.bos_token_id
    twice = 0 if bos is None else count_twice(dataset, bos)
    if not twice:
        return dataset
    if adds_bos(tokenizer):
        with PartialState().main_process_first():
            dataset = dataset.map(
                drop_second,
                batched=True,
                fn_kwargs={"bos": bos, "text": tokenizer.bos_token},
                num_proc=num_proc,
                desc=f"Dropping the second BOS from {name} dataset",
            )
    left = count_twice(dataset, bos)
    if PartialState().is_main_process:
        _say(name, len(dataset), tokenizer.bos_token, twice - left, left)
    return dataset


def _say(name: str, rows: int, bos: str, dropped: int, left: int) -> None:
    """One line for each reason that there is."""
    reasons = (
        (
            dropped,
            "their text begins with it, as chat templates have it, and the tokenizer adds another. The second is "
            "dropped; plain rl: dpo keeps both",
        ),
        (left, "they hold both in their own text, or the template writes both. They are left as they are"),
    )
    for count, reason in reasons:
        if count:
            LOG.warning("%s: %d of %d prompts begin with the BOS token %r twice: %s.", name, count, rows, bos, reason)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS in front of what it is given."""
    with_it, without = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return bool(with_it[:1] == [tokenizer.bos_token_id] and with_it[1:] == without)


def count_twice(dataset: Dataset, bos: int) -> int:
    """Rows whose prompt begins with BOS twice."""
    count = 0
    for batch in dataset.select_columns(["prompt_ids"]).with_format("arrow").iter(1000):
        column = batch.column("prompt_ids").combine_chunks()
        ids = column.flatten().to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        starts = (np.cumsum(lengths) - lengths)[lengths >= 2]
        count += int(((ids[starts] == bos) & (ids[starts + 1] == bos)).sum())
    return count


def drop_second(rows: dict[str, list[Any]], bos: int, text: str) -> dict[str, list[Any]]:
    """The prompts of a batch, without a BOS that stands before the one that their text begins with."""
    prompts = zip(rows["prompt"], rows["prompt_ids"], strict=True)
    return {"prompt_ids": [ids[1:] if _is_twice(prompt, ids, bos, text) else ids for prompt, ids in prompts]}


def _is_twice(prompt: Any, ids: list[int], bos: int, text: str) -> bool:
    """A list of messages is tokenized by the template alone, which then means both."""
    return isinstance(prompt, str) and prompt.startswith(text) and ids[:2] == [bos, bos]
