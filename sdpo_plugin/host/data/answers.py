"""The frame that the chat template of an entry writes around an answer, where the host looks for the answer in it."""

from collections.abc import Iterable, Iterator

import numpy as np
from axolotl.utils.chat_templates import get_chat_template_from_config
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.lost_content import DUMMY, Frame
from sdpo_plugin.pair_facts import Bools

SEARCHES = "chat_template"  # the host's prompt strategies that look for the answer
MARK = "[[answer]]"
ANSWERS = ["chosen", "rejected"]


def frames(cfg: DictDefault, entries: Iterable[DictDefault], tokenizer: PreTrainedTokenizerBase) -> list[Frame]:
    """The frames of the entries of one source; none where no answer is looked for."""
    found = {frame: None for entry in entries for frame in _frame(cfg, entry, tokenizer)}
    return list(found)


def _frame(cfg: DictDefault, entry: DictDefault, tokenizer: PreTrainedTokenizerBase) -> Iterator[Frame]:
    if not isinstance(entry.type, str) or entry.type.split(".")[0] != SEARCHES:
        return
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": DUMMY}, {"role": "assistant", "content": MARK}],
        add_generation_prompt=False,
        chat_template=get_chat_template_from_config(cfg=cfg, ds_cfg=entry, tokenizer=tokenizer),
        tokenize=False,
    )
    before, mark, after = written.partition(MARK)
    if mark:
        yield Frame(before, after)


def spoilt(rows: Dataset, around: list[Frame]) -> Bools | None:
    """Which rows have an answer that lost its content, shape (N,); None where no answer was looked for."""
    if not around:
        return None
    flags = [
        any(isinstance(answer, str) and frame.spoils(answer) for answer in pair for frame in around)
        for batch in rows.select_columns(ANSWERS).iter(1000)
        for pair in zip(*(batch[side] for side in ANSWERS), strict=True)
    ]
    return np.array(flags, dtype=bool)
