"""The changes that a run can be resumed with, and those that are refused. Pure functions on JSON values."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.scrub import without_credentials

# Keys of the host's config that leave the result alone: where things are, what is logged, saved and how fast.
# Data, models and tokenizers are compared by what they hold, not by where they lie.
FREE_KEYS = frozenset(
    "output_dir base_model lora_model_dir base_model_config tokenizer_config revision_of_model axolotl_config_path "
    "capabilities env_capabilities local_rank device device_map ddp ddp_timeout ddp_bucket_cap_mb "
    "ddp_find_unused_parameters "
    "resume_from_checkpoint auto_resume_from_checkpoints datasets test_datasets val_set_size chat_template "
    "chat_template_jinja sdpo strict debug gc_steps gc_collect_steps torch_empty_cache_steps include_tkps "
    "is_preprocess push_dataset_to_hub hf_use_auth_token saves_per_epoch experimental_skip_move_to_device "
    "generate_samples num_generation_samples wandb use_wandb use_mlflow use_comet use_trackio use_swanlab use_otel "
    "use_tensorboard save_safetensors tokenizer_save_jinja_files do_bench_eval report_to precompute_ref_log_probs "
    "trainer_cls rl telemetry use_otel_metrics merge_method resources_per_worker eval_batch_size".split()
)
FREE_PREFIXES = tuple(
    "logging_ save_ wandb_ mlflow_ comet_ hub_ trackio_ swanlab_ otel_ generation_ profiler_ sync_profiler_ "
    "dataloader_ dataset_ bench_ vllm tensorboard_ ray_".split()
)
# Hyper-parameters: a step keeps those it began with, a step that has not begun may be given others.
STEP_KEYS = frozenset(
    "learning_rate num_epochs max_steps rl_beta weight_decay optimizer optim_args max_grad_norm batch_size "
    "early_stopping_patience load_best_model_at_end metric_for_best_model greater_is_better group_by_length seed "
    "embedding_lr embedding_lr_scale lr_groups lr_div_factor evals_per_epoch trl".split()
)
STEP_PREFIXES = ("dpo_", "lr_scheduler", "cosine_", "warmup_", "adam_", "eval_", "loraplus_", "optim_")
# How a batch is shared out and computed: a half-trained step cannot be resumed with another way, every other step can.
PARALLEL_KEYS = frozenset(
    "micro_batch_size gradient_accumulation_steps world_size deepspeed fsdp_config fsdp_version packed "
    "gradient_checkpointing gradient_checkpointing_kwargs activation_offloading".split()
)
# A tokenizer's bos_token, … are none.
NO_SECRET = "".join(f"(?<!{name}_)" for name in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"))
SECRET = re.compile(rf"(^|_)({NO_SECRET}token|api_?key|secret|password|passwd|credentials?)$", re.IGNORECASE)

VERSIONS = "versions"
Facts = Mapping[str, Any]


def without_secrets(value: Any) -> Any:
    """A JSON value without keys that hold secrets, and URLs in it without user, password and query."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items() if not SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    if isinstance(value, str):
        return without_credentials(value)
    return value


def run_settings(config: Facts) -> dict[str, Any]:
    """The part of a host config that every step of a run shares: everything not known to be free or a step's own."""
    return _without(config, lambda key: not (_is_free(key) or _is_a_steps(key) or key in PARALLEL_KEYS))


def step_settings(config: Facts) -> dict[str, Any]:
    """The hyper-parameters of a step, with how its batches are shared out."""
    return _without(config, lambda key: (_is_a_steps(key) or key in PARALLEL_KEYS) and not _is_free(key))


def changes(before: Facts, now: Facts, names: Mapping[str, str] | None = None) -> list[str]:
    """The keys whose values differ, with both values."""
    keys = [key for key in [*before, *(key for key in now if key not in before)] if before.get(key) != now.get(key)]
    called = {key: f"{key} ({name})" for key, name in (names or {}).items()}
    return [f"{called.get(key, key)} is {_brief(now.get(key))}, and it was {_brief(before.get(key))}" for key in keys]


def require_same_run(before: Facts, now: Facts, names: Mapping[str, str] | None = None) -> None:
    """Refuse to resume a run with something else than it began with.

    Args:
        before, now: sections ("base model", "rows", "config", …) of facts.
        names: what a key is called besides, for the message: the file behind "source 3".

    Raises:
        ConfigError: one line for each thing that has changed.
    """
    found = []
    for section in [*before, *(name for name in now if name not in before)]:
        if section == VERSIONS:
            continue  # a newer host may round otherwise, and is no reason to lose a run: said, not refused
        found += [f"{section}: {line}" for line in changes(before.get(section, {}), now.get(section, {}), names)]
    _refuse(found, "the run in output_dir")


def require_same_steps(before: Sequence[str], now: Sequence[str]) -> None:
    """Refuse to resume with steps of other names: a name is where a step's model and table lie.

    Args:
        before, now: names of all steps, in order.

    Raises:
        ConfigError: one line for each name that has changed.
    """
    pairs = enumerate(zip_longest(before, now), 1)
    found = [f"name of step {t} is {_brief(new)}, and it was {_brief(old)}" for t, (old, new) in pairs if old != new]
    _refuse(found, "the run in output_dir")


def require_same_step(name: str, before: Facts, now: Facts, from_checkpoint: bool) -> None:
    """Refuse to resume a step with other hyper-parameters than it began with.

    Args:
        name: of the step.
        before, now: as ``step_settings`` gives them.
        from_checkpoint: the step is half trained; how its batches are shared out and computed has to be the same too.

    Raises:
        ConfigError: one line for each thing that has changed.
    """
    kept = [key for key in {**before, **now} if from_checkpoint or key not in PARALLEL_KEYS]
    packed = f"set sdpo.packed: {'true' if before.get('packed') else 'false'}"  # `auto` is no value to go back to
    found = changes({key: before.get(key) for key in kept}, {key: now.get(key) for key in kept}, {"packed": packed})
    _refuse(found, f"step {name}")


def _refuse(found: list[str], what: str) -> None:
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise ConfigError(
            f"{what} cannot be resumed: since it began this has changed:\n{lines}\n"
            "Put it back, or train into another output_dir. Steps that have not begun may be given other "
            "hyper-parameters, under sdpo.steps."
        )


def _without(config: Facts, belongs: Callable[[str], bool]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if value is not None and belongs(key)}
    cleaned: dict[str, Any] = without_secrets(kept)
    return dict(sorted(cleaned.items()))


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith(FREE_PREFIXES)


def _is_a_steps(key: str) -> bool:
    return key in STEP_KEYS or key.startswith(STEP_PREFIXES)


def _brief(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Mapping) and value.keys() >= {"rows", "digest"}:
        own = "".join(f", {key}: {item}" for key, item in value.items() if key not in ("rows", "digest"))
        return f"{value['rows']:,} rows with digest {value['digest'][:12]}…{own}"
    text = repr(value)
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    return text if len(text) <= 80 else f"{text[:77]}…"
