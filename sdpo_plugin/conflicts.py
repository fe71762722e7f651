"""Host keys that contradict `rl: sdpo`: what conflicts, the value seen, what to set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.recognition import TRAINER_CLS


def _is_set(value: Any) -> bool:
    return bool(value)


def _more_than_one(value: Any) -> bool:
    try:
        return value is not None and int(value) > 1
    except (TypeError, ValueError, OverflowError):  # no number: the host would end with a traceback of its own
        return True


def _saves_in_parts(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return bool(config)  # the host stumbles over what is no block
    if not config:
        return False
    keys = ("final_state_dict_type", "state_dict_type")
    types = (config.get(f"{prefix}{key}") for key in keys for prefix in ("", "fsdp_"))
    return next(filter(None, types), None) != "FULL_STATE_DICT"


def _cuts_batches(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return bool(config)  # the host stumbles over what is no block
    return bool(config.get("dispatch_batches") or config.get("split_batches"))


def _is_in_hooks(optimizer: Any) -> bool:
    return str(optimizer).lower().endswith(("layerwise", "lomo"))


def _changes_on_its_way(qat: Any) -> bool:
    return isinstance(qat, Mapping) and bool(qat.get("fake_quant_after_n_steps"))


def _parts_sequences(config: Any) -> bool:
    return isinstance(config, Mapping) and _more_than_one(config.get("size"))


def _has_grokfast(plugins: Any) -> bool:
    return isinstance(plugins, list | tuple) and any("grokfast" in str(plugin).lower() for plugin in plugins)


def _is_fsdp1(value: Any) -> bool:
    return bool(value) and str(value) != "2"


@dataclass(frozen=True)
class Conflict:
    """A host key with the values of it that cannot go with `rl: sdpo`, why, and what to set instead."""

    key: str
    why: str
    remedy: str
    clashes: Callable[[Any], bool] = _is_set


# Of keys that the host sets by itself for some models, after it has read the config.
FILLED_IN_CONFLICTS = (
    Conflict(
        "nvfp4_merge_aware",
        "the reference of a step is computed before the update at which weights begin to be rounded",
        "set nvfp4_merge_aware: false",
    ),
)

CONFLICTS = (
    *FILLED_IN_CONFLICTS,
    Conflict(
        "trainer_cls",
        "sDPO brings its own trainer",
        "remove trainer_cls",
        lambda value: _is_set(value) and value != TRAINER_CLS,
    ),
    Conflict(
        "precompute_ref_log_probs",
        "sDPO always computes the reference log-probs before each step, by the policy itself",
        "remove precompute_ref_log_probs",
        lambda value: value is False,
    ),
    Conflict(
        "rl_adapter_ref_model",
        "it loads a second model, and the reference of an sDPO step is the policy in memory",
        "remove rl_adapter_ref_model",
    ),
    Conflict(
        "dpo_use_liger_kernel",
        "Liger's fused DPO loss cannot read the table of reference log-probs",
        "set dpo_use_liger_kernel: false",
    ),
    Conflict("relora", "its restarts rewrite the base model that the steps build on", "remove relora and use lora"),
    Conflict("reward_model", "it trains a reward model and not a policy", "remove reward_model"),
    Conflict("process_reward_model", "it trains a reward model and not a policy", "remove process_reward_model"),
    Conflict("processor_type", "multimodal data has no precomputed reference", "remove processor_type"),
    Conflict(
        "streaming",
        "the rows of a step are counted, and their log-probs computed, before it trains",
        "set streaming: false",
    ),
    Conflict("pretraining_dataset", "sDPO trains on preference pairs", "use datasets: with preference data"),
    Conflict(
        "fix_untrained_tokens",
        "the host applies it to the first step's data only",
        "run it in the SFT stage that makes the base model, and remove it here",
    ),
    Conflict(
        "neftune_noise_alpha",
        "its noise makes policy and reference differ where a step begins",
        "use it in the SFT stage, and remove it here",
    ),
    Conflict(
        "fsdp", "the reference pass is not made for FSDP1", "use fsdp_version: 2 with fsdp_config, and remove fsdp"
    ),
    Conflict(
        "fsdp_config",
        "the weights would be saved in parts, which are no model to load",
        "set fsdp_config.final_state_dict_type: FULL_STATE_DICT",
        _saves_in_parts,
    ),
    Conflict("fsdp_version", "the reference pass is not made for FSDP1", "set fsdp_version: 2", _is_fsdp1),
    Conflict(
        "accelerator_config",
        "it cuts the batches of all ranks out of one, which parts chosen from rejected rows, or takes micro_batch_size "
        "for all ranks together",
        "set accelerator_config.dispatch_batches and split_batches to false",
        _cuts_batches,
    ),
    Conflict(
        "use_ray",
        "the host gives each of Ray's workers a GPU, and the chain has not been tested there",
        "remove use_ray and launch with torchrun or accelerate, also on several machines",
    ),
    Conflict(
        "context_parallel_size",
        "the reference pass is not made for split sequences yet",
        "set context_parallel_size: 1",
        _more_than_one,
    ),
    Conflict(
        "sequence_parallel_degree",
        "it stands for context_parallel_size, and the reference pass is not made for split sequences yet",
        "remove sequence_parallel_degree",
        _more_than_one,
    ),
    Conflict(
        "context_parallel",
        "the reference pass is not made for split sequences yet",
        "set context_parallel.size: 1",
        _parts_sequences,
    ),
    Conflict(
        "tensor_parallel_size",
        "the reference pass is not made for split layers yet",
        "set tensor_parallel_size: 1",
        _more_than_one,
    ),
    Conflict(
        "expert_parallel_size",
        "each rank would hold experts of its own, and rank 0's alone would be saved",
        "set expert_parallel_size: 1",
        _more_than_one,
    ),
    Conflict(
        "pad_to_multiple_of",
        "the host's collator for it does not make what TRL's trainer reads",
        "remove pad_to_multiple_of",
    ),
    Conflict(
        "optimizer",
        "it updates weights from hooks on them, where those of the steps before would go on training",
        "choose an optimizer that updates all weights together, such as adamw_torch",
        _is_in_hooks,
    ),
    Conflict(
        "qat",
        "the reference of a step is computed before the update at which weights begin to be rounded",
        "remove qat.fake_quant_after_n_steps",
        _changes_on_its_way,
    ),
    Conflict(
        "fp8",
        "where it is not without effect, the training computes in it and the reference pass does not",
        "remove fp8 and set bf16: true",
    ),
    Conflict(
        "reinit_weights",
        "the host draws the weights of every model that it loads: those of a resumed step, and of a reference, too",
        "save a model with random weights, set base_model to it, and remove reinit_weights",
    ),
    Conflict(
        "llmcompressor",
        "its session ends with the first step, and the gradients of the next ones are scaled otherwise",
        "remove llmcompressor, and compress the final model",
    ),
    Conflict(
        "plugins",
        "Grokfast's average of gradients is in no checkpoint: a step that is resumed would end with other weights",
        "remove axolotl.integrations.grokfast.GrokfastPlugin",
        _has_grokfast,
    ),
    Conflict(
        "coreweave",
        "what publishes its checkpoints belongs to the first step: the next one finds it closed, or writes below that",
        "remove coreweave",
    ),
)

# `axolotl inference` takes `rl` out of the config, which may then be of a run that packs.
PACKING_CONFLICTS = (
    Conflict(
        "dpo_padding_free",
        "TRL switches it off again and pads every batch, so that nothing would come of it",
        "remove dpo_padding_free",
    ),
    Conflict(
        "padding_free",
        "the host has no such key, and TRL's own switch of that name is without effect",
        "remove padding_free",
    ),
    Conflict("sample_packing", "the host does not pack preference pairs", "remove sample_packing"),
)

ADAPTERS = ("lora", "qlora")


def check_conflicts(cfg: Mapping[str, Any], conflicts: tuple[Conflict, ...] = CONFLICTS) -> None:
    """Refuse host keys that contradict `rl: sdpo`, all of them in one message.

    Raises:
        ConfigError: one line a conflict: the key, the value seen, why, and what to set.
    """
    found = [
        f"rl: sdpo conflicts with {c.key}: {cfg.get(c.key)!r}: {c.why}; {c.remedy}."
        for c in conflicts
        if c.clashes(cfg.get(c.key))
    ]
    trl = cfg.get("trl")
    if isinstance(trl, Mapping) and trl.get("sync_ref_model"):  # what is no block is the host's to refuse
        found.append(
            "rl: sdpo conflicts with trl.sync_ref_model: True: there is no second model to sync; remove "
            "trl.sync_ref_model, and set sdpo.reference_refresh for a reference that moves within a step."
        )
    if found:
        raise ConfigError("\n".join(found))


def check_starting_adapter(cfg: Mapping[str, Any]) -> None:
    """Refuse an adapter to start from where the steps do not train one like it.

    This holds only where a chain is trained: `merge-lora` and `inference` read the same file, and use the key.

    Raises:
        ConfigError: no adapter is trained, or one that begins otherwise.
    """
    directory, adapter = cfg.get("lora_model_dir"), cfg.get("adapter")
    if not directory:
        return
    clash = f"rl: sdpo conflicts with lora_model_dir: {directory!r}"
    if adapter not in ADAPTERS:
        raise ConfigError(
            f"{clash}: it is an adapter for the steps to start from, and they do not train one of its kind (adapter: "
            f"{adapter!r}); set adapter: lora or qlora, or merge it first (axolotl merge-lora), set base_model to the "
            "merged model, and remove lora_model_dir."
        )
    peft = cfg.get("peft")
    drawn = {
        "peft_init_lora_weights": cfg.get("peft_init_lora_weights"),
        "peft.loftq_config": peft.get("loftq_config") if isinstance(peft, Mapping) else None,
    }
    for key, value in drawn.items():
        if value:
            raise ConfigError(
                f"{clash}: its weights take the place of those that {key}: {value!r} would draw, which may change the "
                f"base model besides; remove {key}."
            )
