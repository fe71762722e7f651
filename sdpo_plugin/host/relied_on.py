"""What this package relies on in the host: every private name, and every attribute of the trainer that it uses.

Where a public way exists it is used, and not listed: an import that fails says so itself. `tests/test_contracts.py`
reads the code for uses, and finds each of them here. Checked as early as each can be: modules when the config is
registered, the trainer's classes before the model's weights are read, the trainer itself before anything is computed.
"""

from typing import Any

import axolotl.evaluate
import axolotl.train
from accelerate.data_loader import DataLoaderAdapter
from axolotl.utils.callbacks.dynamic_checkpoint import DynamicCheckpointCallback
from axolotl.utils.data import rl, shared
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, ProgressCallback, Trainer, TrainerState, modeling_utils
from transformers.integrations import (
    CometCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    deepspeed,
)
from transformers.modeling_utils import AttentionInterface

from sdpo_plugin.host.contracts import CallsOnly, Contract, Has, Names, ReadsOnly, Takes

# The functions that patches.py replaces.
REFERENCE_MODEL = Takes(axolotl.train, "setup_reference_model", ("cfg", "tokenizer", "processor"))
FINAL_SAVE = Takes(axolotl.train, "save_trained_model", ("cfg", "trainer", "model"))
EVALUATED_MODEL = Takes(axolotl.evaluate, "setup_model_and_tokenizer", ("cfg",))
EVALUATED_ROWS = Takes(axolotl.evaluate, "evaluate_dataset", ("trainer", "dataset", "dataset_type", "flash_optimum"))

IN_AXOLOTL: tuple[Contract, ...] = (
    REFERENCE_MODEL,
    FINAL_SAVE,
    EVALUATED_MODEL,
    EVALUATED_ROWS,
    Names(axolotl.train, "execute_training", ("train", "post_train")),  # the first call of the hook
    Names(axolotl.train, "train", ("save_trained_model", "post_train")),  # the second
    Takes(shared, "generate_dataset_hash_from_config", ("cfg", "cfg_datasets", "tokenizer_name")),
    Takes(shared, "get_prepared_dataset_path", ("cfg", "dataset_hash")),
    Takes(shared, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    Takes(rl, "load_dataset_with_config", ("dataset_config", "use_auth_token", "streaming")),
    Takes(rl, "save_preprocessed_dataset", ("cfg", "dataset", "dataset_hash", "split")),
    Takes(rl, "load_dpo", ("strategy", "cfg", "module_base", "kwargs")),
    Takes(rl, "_drop_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    Takes(rl, "_raise_on_long_sequences", ("sample", "rl", "tokenizer", "sequence_len")),
    Takes(shared, "datasets_with_name_generator", ("dataset_configs",)),
)
IN_LIBRARIES: tuple[Contract, ...] = (
    Names(Dataset, "__init__", ("_fingerprint", "_indices")),
    Names(DataLoaderAdapter, "__init__", ("base_dataloader",)),
    Has(PreTrainedModel, "_is_stateful"),
    Has(PretrainedConfig, "_attn_implementation"),
    Takes(PreTrainedModel, "_can_set_attn_implementation", ()),
    Has(PretrainedConfig(), "_attn_implementation_internal"),
    Takes(modeling_utils, "is_deepspeed_zero3_enabled", ()),  # replaced while a hook of the user's runs
    Takes(deepspeed, "is_deepspeed_zero3_enabled", ()),
    Takes(AttentionInterface, "get_interface", ("self", "attn_implementation", "default")),
    Names(ProgressCallback, "__init__", ("training_bar",)),
    # What loggers/ has of transformers' callbacks: attributes, and what they read where a run of theirs begins.
    Names(TensorBoardCallback, "__init__", ("logging_dir", "tb_writer", "_SummaryWriter")),
    Names(TensorBoardCallback, "on_train_begin", ("logging_dir", "output_dir", "tb_writer")),
    Names(WandbCallback, "setup", ("init", "run_name", "train/global_step")),
    Names(MLflowCallback, "__init__", ("_auto_end_run", "_MAX_PARAM_VAL_LENGTH")),
    Names(MLflowCallback, "setup", ("run_name", "start_run", "MLFLOW_RUN_ID", "MLFLOW_MAX_LOG_PARAMS")),
    Names(TrackioCallback, "__init__", ("_trackio",)),
    Names(TrackioCallback, "setup", ("_trackio", "project", "run_name", "trackio_space_id", "allow")),
    Names(CometCallback, "setup", ("_experiment", "start")),
    Names(DynamicCheckpointCallback, "__init__", ("enabled", "trigger_filename")),
    Names(DynamicCheckpointCallback, "on_step_end", ("output_dir", "trigger_filename")),
    Takes(TrainerState, "compute_steps", ("self", "args", "max_steps")),
    Takes(Trainer, "_get_output_dir", ("self", "trial")),
    Takes(Trainer, "_load_rng_state", ("self", "checkpoint")),
    Takes(Trainer, "_evaluate", ("self", "trial", "ignore_keys_for_eval", "skip_scheduler")),
    Takes(Trainer, "_determine_best_metric", ("self", "metrics", "trial")),
)
# Methods that the trainer overrides, or whose override it skips; what it does not mention it does not know.
IN_TRANSFORMERS_TRAINER: tuple[Contract, ...] = (
    Takes(Trainer, "train", ("self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval")),
    Takes(Trainer, "get_train_dataloader", ("self",)),
    Names(Trainer, "get_train_dataloader", ("_train_batch_size",)),  # not the arguments, which a step replaces
    Names(Trainer, "train", ("_train_batch_size",)),
    Takes(Trainer, "get_eval_dataloader", ("self", "eval_dataset")),
    Takes(Trainer, "_save_checkpoint", ("self", "model", "trial")),
    Takes(Trainer, "_load_callback_state", ("self",)),
    Takes(Trainer, "_load_from_checkpoint", ("self", "resume_from_checkpoint", "model")),
    Takes(Trainer, "_load_best_model", ("self",)),
    Takes(Trainer, "prediction_step", ("self", "model", "inputs", "prediction_loss_only", "ignore_keys")),
    Takes(Trainer, "_finalize_training", ("self", "trial", "num_train_samples", "start_time")),
    Takes(
        Trainer,
        "_maybe_log_save_evaluate",
        (
            *("self", "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ),
    ),
    Takes(
        Trainer,
        "_run_epoch",
        (
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ),
    ),
)
AT_REGISTRATION = IN_AXOLOTL + IN_LIBRARIES + IN_TRANSFORMERS_TRAINER

# What the trainer has when it is built: "" is the trainer itself, others are attributes of it.
OF_THE_TRAINER = {
    "": (
        *("_metrics", "_total_train_tokens", "beta", "label_smoothing", "loss_types", "loss_weights", "use_weighting"),
        *("ld_alpha", "_train_batch_size", "compute_metrics", "optimizer_cls_and_kwargs", "is_model_parallel"),
        *("aux_loss_enabled", "ref_model", "dataset_tags", "data_collator", "processing_class", "train_dataset"),
        *("eval_dataset", "model", "model_wrapped", "optimizer", "lr_scheduler", "is_deepspeed_enabled"),
        *("is_fsdp_enabled", "args", "state", "control", "accelerator", "callback_handler", "add_callback"),
    ),
    "accelerator": (
        *(
            "device",
            "free_memory",
            "gather",
            "is_main_process",
            "prepare",
            "prepare_model",
            "scaler",
            "state",
            "unwrap_model",
        ),
    ),
    "callback_handler": (
        *("callbacks", "model", "processing_class", "lr_scheduler", "optimizer", "train_dataloader", "eval_dataloader"),
        *("on_save", "on_train_end"),
    ),
    "control": ("should_save", "should_training_stop"),
    "state": (
        *(
            "best_model_checkpoint",
            "best_global_step",
            "compute_steps",
            "global_step",
            "log_history",
            "max_steps",
            "stateful_callbacks",
        ),
        "is_world_process_zero",
    ),
    "data_collator": ("max_length",),
    "args": (
        *("ld_alpha", "gradient_accumulation_steps", "train_batch_size", "world_size"),
        *("beta", "label_smoothing", "loss_type", "loss_weights", "eval_on_start", "seed", "disable_dropout"),
        *("bf16", "fp16", "tf32", "max_length", "optim", "output_dir", "dataset_num_proc", "load_best_model_at_end"),
        *("per_device_eval_batch_size", "per_device_train_batch_size", "save_only_model", "save_strategy"),
        *("save_total_limit", "torch_compile", "warmup_steps", "max_steps", "num_train_epochs", "learning_rate"),
        *("weight_decay", "eval_strategy", "do_eval", "lr_scheduler_type", "alternate_lr_scheduler_type"),
        *("gradient_accumulation_steps", "n_gpu"),
    ),
}


def of_the_trainers_classes() -> tuple[Contract, ...]:
    """Contracts with modules that may be imported only when the host has made its patches.

    When ``trl.trainer.dpo_trainer`` is imported it binds two functions that the host replaces by Triton kernels, and
    the host does so when it is about to load a model.
    """
    from axolotl.core.builders.base import TrainerBuilderBase
    from axolotl.core.trainers.dpo import DPOStrategy
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
    from trl import DPOTrainer
    from trl.trainer import base_trainer, dpo_trainer

    # step_args.py calls these with something else in the builder's place.
    builder = ("cfg", "eval_dataset")
    return (
        Takes(TrainerBuilderBase, "_configure_warmup_and_logging", ("self", "total_num_steps", "training_args_kwargs")),
        Takes(TrainerBuilderBase, "_configure_save_and_eval_strategy", ("self", "training_args_kwargs")),
        Takes(TrainerBuilderBase, "_configure_scheduler", ("self", "training_args_kwargs")),
        ReadsOnly(TrainerBuilderBase, "_configure_warmup_and_logging", builder),
        ReadsOnly(TrainerBuilderBase, "_configure_save_and_eval_strategy", builder),
        ReadsOnly(TrainerBuilderBase, "_configure_scheduler", builder),
        Names(
            TrainerBuilderBase,
            "get_callbacks",
            (
                *("SaveAxolotlConfigtoWandBCallback", "SaveAxolotlConfigtoMlflowCallback"),
                *("SaveAxolotlConfigtoCometCallback", "SaveAxolotlConfigtoTrackioCallback"),
            ),
        ),
        Takes(DPOStrategy, "set_training_args_kwargs", ("cfg",)),
        CallsOnly(
            AxolotlDPOTrainer,
            "training_step",
            ("super().training_step", "super", "gc.collect", "torch.cuda.empty_cache"),
        ),
        Takes(DPOTrainer, "training_step", ("self", "args", "kwargs")),
        Takes(DPOTrainer, "compute_loss", ("self", "model", "inputs", "return_outputs", "num_items_in_batch")),
        Takes(DPOTrainer, "log", ("self", "logs", "start_time")),
        Takes(DPOTrainer, "_prepare_inputs", ("self", "inputs")),
        Takes(DPOTrainer, "floating_point_ops", ("self", "inputs")),
        Takes(DPOTrainer, "_track_num_input_tokens", ("self", "inputs")),
        Takes(DPOTrainer, "_precompute_ref_logps", ("self", "dataset", "name", "batch_size")),
        Takes(DPOTrainer, "_prepare_dataset", ("self", "dataset", "processing_class", "args", "dataset_name")),
        Takes(DPOTrainer, "compute_ref_log_probs", ("self", "model", "inputs")),
        Names(dpo_trainer, "DPOTrainer", ("ref_model", "use_adapter")),  # without the first, no adapter either
        Names(
            DPOTrainer, "_compute_loss", ("rewards/margins", "_metrics", "train", "ld_alpha", "selective_log_softmax")
        ),
        Names(DPOTrainer, "_prepare_dataset", ("max_length",)),
        Takes(DPOTrainer, "create_model_card", ("self", "model_name", "dataset_name", "tags")),
        Takes(DPOTrainer, "save_model", ("self", "output_dir", "_internal_call")),
        Takes(DPOTrainer, "is_world_process_zero", ("self",)),
        Takes(base_trainer, "get_trackio_space_url", ()),
        Takes(base_trainer, "get_comet_experiment_url", ()),
    )


def of_lm_eval() -> tuple[Contract, ...]:
    """Contracts with lm-eval, which takes seconds to import, and which only a config with benchmarks needs."""
    from lm_eval import evaluator
    from lm_eval.api import metrics
    from lm_eval.models.huggingface import HFLM

    return (
        Takes(evaluator, "add_env_info", ("storage",)),
        Names(metrics, "bootstrap_stderr", ("DISABLE_MULTIPROC",)),
        Takes(HFLM, "_model_call", ("self", "inps", "attn_mask", "labels")),
        Takes(HFLM, "_model_generate", ("self", "context", "max_length", "stop", "generation_kwargs")),
        Takes(HFLM, "loglikelihood", ("self", "requests", "disable_tqdm")),
        Takes(HFLM, "loglikelihood_rolling", ("self", "requests", "disable_tqdm")),
        Takes(HFLM, "generate_until", ("self", "requests", "disable_tqdm")),
        Names(HFLM, "__init__", ("_device", "_rank", "_world_size")),
    )


def of_the_trainer(trainer: Any) -> tuple[Contract, ...]:
    """Contracts with the trainer that the host has built, and with the engine that it will train under."""
    owners = {"": trainer} | {name: getattr(trainer, name) for name in OF_THE_TRAINER if name}
    contracts: list[Contract] = [Has(owner, name) for path, owner in owners.items() for name in OF_THE_TRAINER[path]]
    contracts.append(Has(trainer.accelerator.state, "dynamo_plugin"))
    if trainer.is_deepspeed_enabled:
        contracts += _of_deepspeed(trainer)
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        names = ("fsdp_version", "activation_checkpointing", "state_dict_type", "set_state_dict_type")
        contracts += [Has(plugin, name) for name in names]
    return tuple(contracts)


def _of_deepspeed(trainer: Any) -> list[Contract]:
    """What DeepSpeed adds to a parameter that it shards, and where accelerate keeps its config."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import mixed_precision_linkage

    state = trainer.accelerator.state
    return [
        Names(Init, "_convert_to_deepspeed_param", ("ds_tensor", "ds_shape", "ds_numel", "partition")),
        Names(DeepSpeedEngine, "__init__", ("module_forward_pre_hook", "module_forward_post_hook")),
        # What engines/engine.py takes off parameters.
        Names(DeepSpeedZeroOptimizer_Stage3, "_link_all_hp_params", ("_z3_optimizer",)),
        Names(DeepSpeedZeroOptimizer, "_create_optimizer_mapping", ("_zero_optimizer",)),
        Names(mixed_precision_linkage, "link_hp_params", ("_hp_mapping",)),
        Has(state, "deepspeed_plugin"),
        Has(state.deepspeed_plugin, "deepspeed_config"),
        Has(state.deepspeed_plugin, "hf_ds_config"),
        Has(state.deepspeed_plugin, "zero_stage"),
        Names(type(trainer.accelerator), "get_state_dict", ("deepspeed_config",)),
        Has(trainer, "deepspeed"),
    ]
