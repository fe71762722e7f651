"""The host versions that are supported, each private symbol relied on, and the patches with their undo.

A host upgrade that breaks something fails here, by name: versions and most symbols before anything is loaded, those of
the DPO trainer before the model's weights are read. Not earlier: when ``trl.trainer.dpo_trainer`` is imported it binds
two functions that the host replaces by Triton kernels, and the host does so when it is about to load a model.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import axolotl.evaluate
import axolotl.train
from axolotl.utils.data import rl, shared
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from packaging.specifiers import SpecifierSet
from transformers import Trainer
from transformers.utils import CONFIG_NAME

from sdpo_plugin.conflicts import TRAINER_CLS
from sdpo_plugin.errors import UnsupportedHostError

SUPPORTED = {"axolotl": SpecifierSet(">=0.19,<0.20"), "trl": SpecifierSet(">=1.9,<1.10")}

Contract = tuple[Any, str, tuple[str, ...]]
REFERENCE_MODEL: Contract = (axolotl.train, "setup_reference_model", ("cfg", "tokenizer", "processor"))
FINAL_SAVE: Contract = (axolotl.train, "save_trained_model", ("cfg", "trainer", "model"))
EVALUATED_MODEL: Contract = (axolotl.evaluate, "setup_model_and_tokenizer", ("cfg",))
EVALUATED_ROWS: Contract = (
    *(axolotl.evaluate, "evaluate_dataset"),
    ("trainer", "dataset", "dataset_type", "flash_optimum"),
)
# Not public, relied on: owner, name, parameters. Each is used where a public way does not exist.
RELIED_ON: tuple[Contract, ...] = (
    REFERENCE_MODEL,
    FINAL_SAVE,
    EVALUATED_MODEL,
    EVALUATED_ROWS,
    (shared, "generate_dataset_hash_from_config", ("cfg", "cfg_datasets", "tokenizer_name")),
    (shared, "get_prepared_dataset_path", ("cfg", "dataset_hash")),
    (shared, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    (rl, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    (rl, "load_dpo", ("strategy", "cfg", "module_base", "kwargs")),
    (rl, "_drop_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (rl, "_raise_on_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (shared, "datasets_with_name_generator", ("dataset_configs",)),
    (Trainer, "_save_checkpoint", ("self", "model", "trial")),
    (Trainer, "_load_callback_state", ("self",)),
    (Trainer, "_load_rng_state", ("self", "checkpoint")),
    (Trainer, "prediction_step", ("self", "model", "inputs", "prediction_loss_only", "ignore_keys")),
    (Trainer, "_evaluate", ("self", "trial", "ignore_keys_for_eval", "skip_scheduler")),
    (Trainer, "_determine_best_metric", ("self", "metrics", "trial")),
    (Trainer, "_finalize_training", ("self", "trial", "num_train_samples", "start_time")),
    (
        Trainer,
        "_maybe_log_save_evaluate",
        (
            *("self", "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ),
    ),
    (
        Trainer,
        "_run_epoch",
        (
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ),
    ),
)


def relied_on_by_trainer() -> tuple[Contract, ...]:
    """The same for what may be imported only when the host has made its patches."""
    from axolotl.core.builders.base import TrainerBuilderBase
    from axolotl.core.trainers.dpo import DPOStrategy
    from trl import DPOTrainer

    return (
        (TrainerBuilderBase, "_configure_warmup_and_logging", ("self", "total_num_steps", "training_args_kwargs")),
        (TrainerBuilderBase, "_configure_save_and_eval_strategy", ("self", "training_args_kwargs")),
        (TrainerBuilderBase, "_configure_scheduler", ("self", "training_args_kwargs")),
        (DPOStrategy, "set_training_args_kwargs", ("cfg",)),
        (DPOTrainer, "_precompute_ref_logps", ("self", "dataset", "name", "batch_size")),
        (DPOTrainer, "_prepare_dataset", ("self", "dataset", "processing_class", "args", "dataset_name")),
        (DPOTrainer, "compute_ref_log_probs", ("self", "model", "inputs")),
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
    for contract in RELIED_ON:
        _require_signature(*contract)


def require_supported_trainer() -> None:
    """Import the trainer, and check what it relies on. The host has patched what it will patch, and read no weights.

    Raises:
        UnsupportedHostError: the trainer cannot be imported, or a symbol is missing or takes other parameters.
    """
    try:
        importlib.import_module(TRAINER_CLS.rpartition(".")[0])
        contracts = relied_on_by_trainer()
    except ImportError as error:
        raise UnsupportedHostError(
            f"sdpo_plugin's trainer cannot load beside the installed packages: {error}; install the versions named in "
            "its pyproject.toml."
        ) from error
    for contract in contracts:
        _require_signature(*contract)


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


def is_sdpo(cfg: DictDefault) -> bool:
    """Whether this config, after ``register``, is one of ours. The plugin manager keeps the plugins of earlier ones."""
    return bool(cfg.get("trainer_cls") == TRAINER_CLS and cfg.get("rl") == "dpo")


def patch_host() -> None:
    """Make the host load no reference model for an sDPO config, leave nothing but the adapter of a LoRA run, and
    evaluate what was held out.

    The functions below say why. Idempotent.

    Raises:
        UnsupportedHostError: a function is missing or takes other parameters; neither is patched.
    """
    for contract in PATCHES:
        _require_signature(*contract)
    for (owner, name, _), patched in PATCHES.items():
        original = getattr(owner, name)
        if not _is_ours(original):
            replacement = functools.wraps(original)(patched(original))
            replacement.__module__ = __name__
            setattr(owner, name, replacement)


def undo_patches() -> None:
    """Put the host's own functions back. Idempotent."""
    _evaluated.clear()
    for owner, name, _ in PATCHES:
        current = getattr(owner, name)
        if _is_ours(current):
            setattr(owner, name, inspect.unwrap(current))


def _without_reference_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """No second model.

    Reason: ``axolotl.train.setup_reference_model`` loads a whole second model under `rl: dpo` without an adapter,
    also with `precompute_ref_log_probs`, and offers no key, hook or subclass to prevent it.
    Range: axolotl 0.19. Remove when the host skips the load under `precompute_ref_log_probs: true`
    (https://github.com/axolotl-ai-cloud/axolotl, axolotl/train.py).
    """

    def setup_reference_model(cfg: DictDefault, *args: Any, **kwargs: Any) -> Any:
        return None if is_sdpo(cfg) else original(cfg, *args, **kwargs)

    return setup_reference_model


def _adapter_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of a LoRA run the adapter, as every step's directory holds it.

    Reason: under `rl: dpo` with an adapter ``axolotl.train.save_trained_model`` saves the adapter, and then the model
    that TRL has put the adapter into: a `model.safetensors` of the base model's size, whose layers have names of their
    own (`….base_layer.weight`). With the base's `config.json`, which the host writes before it trains, transformers
    takes the directory for a whole model, draws those layers at random and says so in a warning. The host passes the
    model by a local variable: no key, hook or subclass reaches it. Here it is the adapter that is saved twice.
    Range: axolotl 0.19. Remove when the host saves ``trainer.model`` alone (axolotl/train.py).
    """

    def save_trained_model(cfg: DictDefault, trainer: Any, model: Any) -> Any:
        if not (is_sdpo(cfg) and cfg.adapter):
            return original(cfg, trainer, model)
        result = original(cfg, trainer, trainer.model)
        if is_main_process():
            (Path(cfg.output_dir) / CONFIG_NAME).unlink(missing_ok=True)
        return result

    return save_trained_model


def _model_of_the_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """`axolotl evaluate` loads M_T.

    Reason: the host evaluates `base_model`, which in the file of a run is M_0, and under preference training without
    its adapter; `axolotl evaluate` has no hook before the model. Range: axolotl 0.19. Remove when the host asks plugins
    for what is evaluated.
    """

    def setup_model_and_tokenizer(cfg: DictDefault) -> Any:
        if not is_sdpo(cfg):
            return original(cfg)
        from sdpo_plugin.host.evaluating import load_model

        loaded = load_model(cfg, original)
        _evaluated[:] = [cfg]
        return loaded

    return setup_model_and_tokenizer


def _rows_of_the_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """`axolotl evaluate` scores the held-out rows of every step.

    Reason: the host does not ask plugins for data there, merges all entries of `datasets:`, and reports losses of rows
    that were trained on. Range: axolotl 0.19. Remove when the host calls a plugin's ``load_datasets`` in `axolotl
    evaluate`, as it does in `axolotl train`.
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
    FINAL_SAVE: _adapter_only,
    EVALUATED_MODEL: _model_of_the_run,
    EVALUATED_ROWS: _rows_of_the_run,
}


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
