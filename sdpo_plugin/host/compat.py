"""The host versions that are supported, each private symbol relied on, and the patches with their undo.

A host upgrade that breaks something fails here, by name, before anything is loaded.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import axolotl.train
from axolotl.core.builders.base import TrainerBuilderBase
from axolotl.core.trainers.dpo import DPOStrategy
from axolotl.utils.data import rl, shared
from axolotl.utils.dict import DictDefault
from packaging.specifiers import SpecifierSet
from transformers import Trainer
from trl import DPOTrainer

from sdpo_plugin.conflicts import TRAINER_CLS
from sdpo_plugin.errors import UnsupportedHostError

SUPPORTED = {"axolotl": SpecifierSet(">=0.19,<0.20"), "trl": SpecifierSet(">=1.9,<1.10")}

# Not public, relied on: owner, name, parameters. Each is used where a public way does not exist.
RELIED_ON: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (axolotl.train, "setup_reference_model", ("cfg", "tokenizer", "processor")),
    (shared, "generate_dataset_hash_from_config", ("cfg", "cfg_datasets", "tokenizer_name")),
    (shared, "get_prepared_dataset_path", ("cfg", "dataset_hash")),
    (shared, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    (rl, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    (rl, "load_dpo", ("strategy", "cfg", "module_base", "kwargs")),
    (rl, "_drop_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (rl, "_raise_on_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (shared, "datasets_with_name_generator", ("dataset_configs",)),
    (TrainerBuilderBase, "_configure_warmup_and_logging", ("self", "total_num_steps", "training_args_kwargs")),
    (TrainerBuilderBase, "_configure_save_and_eval_strategy", ("self", "training_args_kwargs")),
    (TrainerBuilderBase, "_configure_scheduler", ("self", "training_args_kwargs")),
    (DPOStrategy, "set_training_args_kwargs", ("cfg",)),
    (DPOTrainer, "_precompute_ref_logps", ("self", "dataset", "name", "batch_size")),
    (DPOTrainer, "_prepare_dataset", ("self", "dataset", "processing_class", "args", "dataset_name")),
    (DPOTrainer, "compute_ref_log_probs", ("self", "model", "inputs")),
    (Trainer, "_save_checkpoint", ("self", "model", "trial")),
    (Trainer, "_load_callback_state", ("self",)),
    (
        Trainer,
        "_run_epoch",
        (
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ),
    ),
    (DPOTrainer, "save_model", ("self", "output_dir", "_internal_call")),
)


def require_supported_host() -> None:
    """Check the versions and every symbol of ``RELIED_ON``.

    Raises:
        UnsupportedHostError: a version is out of range, or a symbol is missing or takes other parameters.
    """
    for package, supported in SUPPORTED.items():
        found = version(package)
        if not supported.contains(found, prereleases=True):
            raise UnsupportedHostError(
                f"{package} {found} is installed, and this version of sdpo_plugin supports {package}{supported}; "
                f"run: pip install '{package}{supported}'."
            )
    for owner, name, parameters in RELIED_ON:
        _require_signature(owner, name, parameters)


def is_sdpo(cfg: DictDefault) -> bool:
    """Whether this config, after ``register``, is one of ours. The plugin manager keeps the plugins of earlier ones."""
    return bool(cfg.get("trainer_cls") == TRAINER_CLS and cfg.get("rl") == "dpo")


def patch_reference_model() -> None:
    """Make the host load no reference model for an sDPO config.

    Reason: ``axolotl.train.setup_reference_model`` loads a whole second model under `rl: dpo` without an adapter,
    also with `precompute_ref_log_probs`, and offers no key, hook or subclass to prevent it.
    Range: axolotl 0.19. Remove when the host skips the load under `precompute_ref_log_probs: true`
    (https://github.com/axolotl-ai-cloud/axolotl, axolotl/train.py). Idempotent.
    """
    _require_signature(axolotl.train, "setup_reference_model", ("cfg", "tokenizer", "processor"))
    original = axolotl.train.setup_reference_model
    if _is_ours(original):
        return
    axolotl.train.setup_reference_model = _without_reference_model(original)


def undo_patch_reference_model() -> None:
    """Put the host's own function back. Idempotent."""
    current = axolotl.train.setup_reference_model
    if _is_ours(current):
        axolotl.train.setup_reference_model = inspect.unwrap(current)


@contextmanager
def loading_through(load: Callable[..., Any]) -> Iterator[None]:
    """Let the host read each entry of a preference set through ``load``, for as long as the context lasts.

    Reason: the host and `datasets` find what they have cached by path and time of a file, and offer no key, hook or
    subclass to find it by content. Range: axolotl 0.19. Remove when the host's hash of a data set covers the content of
    local files.
    """
    original = rl.load_dataset_with_config
    rl.load_dataset_with_config = load
    try:
        yield
    finally:
        rl.load_dataset_with_config = original


def _without_reference_model(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def setup_reference_model(cfg: DictDefault, *args: Any, **kwargs: Any) -> Any:
        return None if is_sdpo(cfg) else original(cfg, *args, **kwargs)

    setup_reference_model.__module__ = __name__
    return setup_reference_model


def _is_ours(function: Callable[..., Any]) -> bool:
    return function.__module__ == __name__


def _require_signature(owner: Any, name: str, parameters: tuple[str, ...]) -> None:
    where = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
    found = inspect.getattr_static(owner, name, None)
    function = found.__func__ if isinstance(found, classmethod) else getattr(owner, name, None)
    if function is None:
        seen = "it is missing"
    else:
        names = tuple(p for p in inspect.signature(function, follow_wrapped=True).parameters if p != "cls")
        if names == parameters:
            return
        seen = f"it takes {', '.join(names)}"
    raise UnsupportedHostError(
        f"sdpo_plugin relies on {where}.{name}({', '.join(parameters)}), and in axolotl {version('axolotl')} with "
        f"trl {version('trl')} {seen}; install the versions named in its pyproject.toml."
    )
