"""The versions of the host that are supported, and a contract for each private symbol that is relied on.

A host upgrade that breaks something fails here, by name: versions and most symbols before anything is loaded, those of
the DPO trainer before the model's weights are read. Not earlier: when ``trl.trainer.dpo_trainer`` is imported it binds
two functions that the host replaces by Triton kernels, and the host does so when it is about to load a model.
"""

import importlib
import inspect
from importlib.metadata import version
from types import ModuleType
from typing import Any

import axolotl.evaluate
import axolotl.train
from axolotl.utils.data import rl, shared
from axolotl.utils.dict import DictDefault
from packaging.specifiers import SpecifierSet
from transformers import PreTrainedModel, Trainer

from sdpo_plugin.conflicts import TRAINER_CLS
from sdpo_plugin.errors import UnsupportedHostError
from sdpo_plugin.host.engines.memory import pass_over_imports

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
    (rl, "save_preprocessed_dataset", ("cfg", "dataset", "dataset_hash", "split")),
    (rl, "load_dpo", ("strategy", "cfg", "module_base", "kwargs")),
    (rl, "_drop_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (rl, "_raise_on_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    (shared, "datasets_with_name_generator", ("dataset_configs",)),
    (PreTrainedModel, "_can_set_attn_implementation", ()),
    (PreTrainedModel, "set_attn_implementation", ("self", "attn_implementation", "allow_all_kernels")),
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
    """Contracts with modules that may be imported only when the host has made its patches."""
    from axolotl.core.builders.base import TrainerBuilderBase
    from axolotl.core.trainers.dpo import DPOStrategy
    from trl import DPOTrainer
    from trl.trainer import base_trainer

    return (
        (TrainerBuilderBase, "_configure_warmup_and_logging", ("self", "total_num_steps", "training_args_kwargs")),
        (TrainerBuilderBase, "_configure_save_and_eval_strategy", ("self", "training_args_kwargs")),
        (TrainerBuilderBase, "_configure_scheduler", ("self", "training_args_kwargs")),
        (DPOStrategy, "set_training_args_kwargs", ("cfg",)),
        (DPOTrainer, "_precompute_ref_logps", ("self", "dataset", "name", "batch_size")),
        (DPOTrainer, "_prepare_dataset", ("self", "dataset", "processing_class", "args", "dataset_name")),
        (DPOTrainer, "compute_ref_log_probs", ("self", "model", "inputs")),
        (DPOTrainer, "save_model", ("self", "output_dir", "_internal_call")),
        (base_trainer, "get_trackio_space_url", ()),
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
        require_signature(*contract)


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
        require_signature(*contract)
    pass_over_imports()


def is_sdpo(cfg: DictDefault) -> bool:
    """Whether this config, after ``register``, is one of ours. The plugin manager keeps the plugins of earlier ones."""
    return bool(cfg.get("trainer_cls") == TRAINER_CLS and cfg.get("rl") == "dpo")


def require_signature(owner: Any, name: str, parameters: tuple[str, ...]) -> None:
    """Check one contract.

    Raises:
        UnsupportedHostError: the symbol is missing, or takes other parameters.
    """
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
