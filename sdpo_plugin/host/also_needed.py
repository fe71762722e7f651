"""What a run needs beside its base model and data, before it trains: engine, adapter, reference, benchmarks,
template."""

from collections.abc import Mapping
from typing import Any

from axolotl.utils.dict import DictDefault

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.deepspeed_conflicts import check_deepspeed
from sdpo_plugin.host.data.step_limits import deepspeed_config
from sdpo_plugin.host.engines.external import require_same_tokenizer
from sdpo_plugin.host.evaluation.tasks import require_chat_template, require_tasks
from sdpo_plugin.host.starting_adapter import load_starting_adapter, require_fitting_adapter


def require_what_else_is_needed(cfg: DictDefault, block: SDPOConfig, *, begins: bool) -> None:
    """Refuse an engine, an adapter or a reference that does not fit, and benchmarks that do not exist; nothing is
    loaded yet.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        begins: a run begins, which reads the data of its benchmarks too. One that is resumed does without them.

    Raises:
        ConfigError: a chain cannot be run under the DeepSpeed config; the adapter is not the one that the config
            describes; the reference has another tokenizer than the policy; a benchmark is unknown or cannot be read.
    """
    engine = deepspeed_config(cfg)
    if isinstance(engine, Mapping):  # `accelerate launch` may bring another, and the trainer looks through that
        check_deepspeed(engine)
    require_fitting_adapter(cfg)
    if block.reference not in ("previous", "base"):
        require_same_tokenizer(cfg, block.reference)
    require_tasks(block.lm_eval, reads_data=begins)


def complete(trainer: Any, cfg: DictDefault, block: SDPOConfig) -> None:
    """Give the policy the adapter that it starts from; refuse benchmarks in a chat template that it does not have.

    Raises:
        ConfigError: the tokenizer has no template; the adapter does not fit the model.
    """
    require_chat_template(block.lm_eval, trainer.processing_class)
    load_starting_adapter(trainer.model, cfg)
