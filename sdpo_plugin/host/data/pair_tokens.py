"""The tokens of pairs as their checks see them: of tokenized rows, and of rows that are texts still."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, Value
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.host.data.bos import adds_bos, drop_second
from sdpo_plugin.host.data.columns import token_columns
from sdpo_plugin.lost_content import Frame
from sdpo_plugin.pair_facts import Columns, Marks, PairFacts, concatenate, pair_facts

TEXTS = ["prompt", "chosen", "rejected"]
# As byte-level and sentencepiece vocabularies write white space, byte by byte where it has no token.
WHITE_SPACE = "ĠĊĉčÂ▁ \n\t\r"
WHITE_BYTES = frozenset(("<0x20>", "<0x0A>", "<0x0D>", "<0x09>"))
# What the host's own prompt strategies write behind an answer, whatever the tokenizer takes it for.
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


def marks_of(tokenizer: PreTrainedTokenizerBase, around: Sequence[Frame]) -> Marks:
    """The tokens that are no content.

    Args:
        tokenizer: of the run.
        around: the frames that chat templates write around answers.
    """
    eos, bos = tokenizer.eos_token, tokenizer.bos_token
    ends = {with_eos(text.rstrip(), eos) for text in ("", *ENDS, *(frame.after for frame in around))}
    white = (
        number
        for token, number in tokenizer.get_vocab().items()
        if token in WHITE_BYTES or not token.strip(WHITE_SPACE)
    )
    return Marks(
        bos=tokenizer.bos_token_id,
        wants_bos=bos is not None and (adds_bos(tokenizer) or any(frame.before.startswith(bos) for frame in around)),
        eos=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        blank=tuple(sorted({*tokenizer.all_special_ids, *white})),
        ends=tuple(tuple(tokenizer(end, add_special_tokens=False)["input_ids"]) for end in sorted(ends)),
    )


def facts_of_tokens(dataset: Dataset, marks: Marks) -> PairFacts:
    """The facts of tokenized rows."""
    return concatenate([pair_facts(columns, marks) for columns in token_columns(dataset)])


def facts_of_texts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, marks: Marks) -> PairFacts | None:
    """The facts of rows that are texts, tokenized as TRL does it when training starts; None of messages."""
    if any(dataset.features.get(name) not in (Value("string"), Value("large_string")) for name in TEXTS):
        return None
    return concatenate([pair_facts(columns, marks) for columns in _tokenized(dataset, tokenizer)])


def with_eos(text: str, eos: str | None) -> str:
    """An answer as TRL tokenizes it."""
    return text if eos is None or text.endswith(eos) else text + eos


def _tokenized(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Columns]:
    twice = tokenizer.bos_token is not None and adds_bos(tokenizer)
    for batch in dataset.select_columns(TEXTS).iter(1000):
        prompts = batch["prompt"]
        ids = tokenizer(prompts)["input_ids"]
        parts = [ids if not twice else _with_one_bos(prompts, ids, tokenizer)]
        for side in TEXTS[1:]:
            texts = [
                prompt + with_eos(answer, tokenizer.eos_token)
                for prompt, answer in zip(prompts, batch[side], strict=True)
            ]
            whole = tokenizer(texts)["input_ids"]
            parts.append([both[len(prompt) :] for both, prompt in zip(whole, ids, strict=True)])
        yield [_flat(rows) for rows in parts]


def _with_one_bos(prompts: Any, ids: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    rows = {"prompt": prompts, "prompt_ids": ids}
    return drop_second(rows, tokenizer.bos_token_id, tokenizer.bos_token)["prompt_ids"]


def _flat(rows: Iterable[Sequence[int]]) -> Any:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum())), lengths
