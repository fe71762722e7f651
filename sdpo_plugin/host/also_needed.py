"""What a run needs beside its own model and data, before it trains: a reference that fits, benchmarks, a template."""

from typing import Any

from axolotl.utils.dict import DictDefault

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.engines.external import require_same_tokenizer
from sdpo_plugin.host.evaluation.tasks import require_chat_template, require_tasks


def require_what_else_is_needed(cfg: DictDefault, block: SDPOConfig, *, begins: bool) -> None:
    """Refuse an external reference that does not fit, and benchmarks that do not exist; nothing is loaded yet.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        begins: a run begins, which reads the data of its benchmarks too. One that is resumed does without them.

    Raises:
        ConfigError: the reference has another tokenizer than the policy; a benchmark is unknown or cannot be read.
    """
    if block.reference not in ("previous", "base"):
        require_same_tokenizer(cfg, block.reference)
    require_tasks(block.lm_eval, reads_data=begins)


def require_fitting_tokenizer(block: SDPOConfig, tokenizer: Any) -> None:
    """Refuse benchmarks in a chat template that the tokenizer does not have.

    Raises:
        ConfigError: it has none.
    """
    require_chat_template(block.lm_eval, tokenizer)
