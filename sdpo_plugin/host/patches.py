"""The patches of the host, each with its undo. CONTRIBUTING.md has the rules for them.

A patch states its reason, the range of versions, and the condition under which it goes.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl.utils.data import rl
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from torch.nn import functional
from transformers.utils import CONFIG_NAME

from sdpo_plugin.host.compat import require_all
from sdpo_plugin.host.data.rated import rating
from sdpo_plugin.host.data.small_sets import written_here
from sdpo_plugin.host.engines.fsdp import saving_whole
from sdpo_plugin.host.engines.ranks import wait_for_all
from sdpo_plugin.host.forward.answer_logits import AnswerLogits, TokenLogits
from sdpo_plugin.host.relied_on import EVALUATED_MODEL, EVALUATED_ROWS, FINAL_SAVE, REFERENCE_MODEL
from sdpo_plugin.recognition import TRAINER_CLS, is_sdpo


@contextmanager
def loading_through(load: Callable[..., Any], column: str | None = None) -> Iterator[None]:
    """Let the host read each entry of a preference set through ``load``, and write what it makes of few rows without
    starting processes, and keep beside each row its number in ``column``, for as long as the context lasts.

    Reasons: the host and `datasets` find what they have cached by path and time of a file, and offer no key, hook or
    subclass to find it by content; small_sets.py and rated.py have the others. Range: axolotl 0.19 to 0.21. Remove when
    the host's hash of a data set covers the content of local files, when it writes small sets in its own process, and
    when an entry can name columns to keep.
    """
    originals = rl.load_dataset_with_config, rl.save_preprocessed_dataset, rl.load_dpo
    rl.load_dataset_with_config, rl.save_preprocessed_dataset = load, written_here(originals[1])
    if column is not None:
        rl.load_dpo = rating(originals[2], column)
    try:
        yield
    finally:
        rl.load_dataset_with_config, rl.save_preprocessed_dataset, rl.load_dpo = originals


@contextmanager
def reading_answer_logits() -> Iterator[None]:
    """Let TRL's loss read ``AnswerLogits`` where a batch is packed, for as long as the context lasts.

    Reason: ``trl.trainer.dpo_trainer`` calls these functions by name with all logits of a batch, also where the host
    has put its Triton kernels in their place; its loss has no method to override between the model and them. Range: trl
    1.9 to 1.14, of which each has two of them. Remove when TRL asks the trainer for the log-probs of tokens.
    """
    from trl.trainer import dpo_trainer  # not before the host has made its own patches: relied_on.py says why

    replaced = {(dpo_trainer, name): read for name, read in READ_BY.items() if name in vars(dpo_trainer)}
    replaced[functional, "cross_entropy"] = "cross_entropy"  # TRL's loss "sft"; Liger puts its own there
    originals = {(owner, name): vars(owner)[name] for owner, name in replaced}
    for (owner, name), original in originals.items():
        setattr(owner, name, _reading(original, replaced[owner, name]))
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


# Functions of TRL, and the method that answers in the place of each.
READ_BY = {
    "selective_log_softmax": "log_probs",
    "entropy_from_logits": "entropies",
    "selective_log_softmax_and_entropy": "log_probs_and_entropies",
}


def _reading(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(logits: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(logits, AnswerLogits | TokenLogits):
            return getattr(logits, method)(original)
        return original(logits, *args, **kwargs)

    return function


def patch_host() -> None:
    """Make the host load no reference model for an sDPO config, leave nothing but the adapter of a LoRA run, wait for
    every rank's part of the final model, and evaluate what was held out.

    The functions below say why. Idempotent.

    Raises:
        UnsupportedHostError: a function is missing or takes other parameters; neither is patched.
    """
    require_all(PATCHES)
    for target, patched in PATCHES.items():
        original = getattr(target.owner, target.name)
        if not _is_ours(original):
            replacement = functools.wraps(original)(patched(original))
            replacement.__module__ = __name__
            setattr(target.owner, target.name, replacement)


def undo_patches() -> None:
    """Put the host's own functions back. Idempotent."""
    _evaluated.clear()
    for target in PATCHES:
        current = getattr(target.owner, target.name)
        if _is_ours(current):
            setattr(target.owner, target.name, inspect.unwrap(current))


def _without_reference_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """No second model.

    Reason: ``axolotl.train.setup_reference_model`` loads a whole second model under `rl: dpo` without an adapter,
    also with `precompute_ref_log_probs`, and offers no key, hook or subclass to prevent it.
    Range: axolotl 0.19 to 0.21. Remove when the host skips the load under `precompute_ref_log_probs: true`
    (https://github.com/axolotl-ai-cloud/axolotl, axolotl/train.py).
    """

    def setup_reference_model(cfg: DictDefault, *args: Any, **kwargs: Any) -> Any:
        return None if is_sdpo(cfg) else original(cfg, *args, **kwargs)

    return setup_reference_model


def _final_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Every rank waits until the final model is written; of a LoRA run it is the adapter, as every step's directory
    holds it.

    Reason: ranks leave ``axolotl.train.save_trained_model`` when they have written their own, and rank 0 seals the
    model: on several machines that share an output directory the first rank of each writes the same files.
    Under `rl: dpo` with an adapter ``axolotl.train.save_trained_model`` saves the adapter, and then the model
    that TRL has put the adapter into: a `model.safetensors` of the base model's size, whose layers have names of their
    own (`….base_layer.weight`). With the base's `config.json`, which the host writes before it trains, transformers
    takes the directory for a whole model, draws those layers at random and says so in a warning. The host passes the
    model by a local variable: no key, hook or subclass reaches it. Here it is the adapter that is saved twice.
    Under FSDP it saves, by a function of its own, what has "lora_" in its name, with the names that activation
    checkpointing gives it. Here the trainer saves the adapter, as it does after every step.
    Range: axolotl 0.19 to 0.21. Remove when the host saves ``trainer.model`` alone, and no rank leaves its save before
    all have written (axolotl/train.py).
    """

    def save_trained_model(cfg: DictDefault, trainer: Any, model: Any) -> Any:
        if not is_sdpo(cfg):
            return original(cfg, trainer, model)
        if cfg.adapter and trainer.is_fsdp_enabled:
            with saving_whole(trainer):
                result = trainer.save_model(cfg.output_dir)
        else:
            result = original(cfg, trainer, trainer.model if cfg.adapter else model)
        wait_for_all()
        if cfg.adapter and is_main_process():
            (Path(cfg.output_dir) / CONFIG_NAME).unlink(missing_ok=True)
        return result

    return save_trained_model


def _model_of_the_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """`axolotl evaluate` loads M_T.

    Reason: the host evaluates `base_model`, which in the file of a run is M_0, and under preference training without
    its adapter; `axolotl evaluate` has no hook before the model. Range: axolotl 0.19 to 0.21. Remove when the host asks
    plugins for what is evaluated.
    """

    def setup_model_and_tokenizer(cfg: DictDefault) -> Any:
        if not is_sdpo(cfg):
            return original(cfg)
        from sdpo_plugin.host.evaluated_model import load_model

        loaded = load_model(cfg, original)
        _evaluated[:] = [cfg]
        return loaded

    return setup_model_and_tokenizer


def _rows_of_the_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """`axolotl evaluate` evaluates on the held-out sets of every step.

    Reason: the host does not ask plugins for data there, merges all entries of `datasets:`, and reports losses of rows
    that were trained on. Range: axolotl 0.19 to 0.21. Remove when the host calls a plugin's ``load_datasets`` in
    `axolotl evaluate`, as it does in `axolotl train`.
    """

    def evaluate_dataset(trainer: Any, dataset: Any, dataset_type: str, *args: Any, **kwargs: Any) -> Any:
        if not (_evaluated and _path(type(trainer)) == TRAINER_CLS):
            return original(trainer, dataset, dataset_type, *args, **kwargs)
        from sdpo_plugin.host.evaluating import evaluate

        return evaluate(_evaluated[0], trainer) if dataset_type == "eval" else None  # not what was trained on

    return evaluate_dataset


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_evaluated: list[DictDefault] = []  # the config whose model `axolotl evaluate` has loaded
PATCHES = {
    REFERENCE_MODEL: _without_reference_model,
    FINAL_SAVE: _final_model,
    EVALUATED_MODEL: _model_of_the_run,
    EVALUATED_ROWS: _rows_of_the_run,
}


def _is_ours(function: Callable[..., Any]) -> bool:
    return function.__module__ == __name__
