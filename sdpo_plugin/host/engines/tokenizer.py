"""The tokenizer of a config, loaded as all ranks have to load it."""

from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.host.engines.ranks import wait_for_all


def tokenizer_of(cfg: DictDefault) -> PreTrainedTokenizerBase:
    """The host's tokenizer. Every rank calls.

    With `added_tokens_overrides` the host's rank 0 writes the tokenizer's files, the others wait for them, and all read
    them. So none may call without the others; and none may call again while another still reads.
    """
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(cfg)
    all_have_read_it(cfg)
    return tokenizer


def all_have_read_it(cfg: DictDefault) -> None:
    """The same behind a function of the host that loads the tokenizer for itself. Every rank calls."""
    if cfg.added_tokens_overrides:
        wait_for_all()
