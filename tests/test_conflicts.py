"""Host keys that contradict `rl: sdpo`."""

from typing import Any

import pytest

from sdpo_plugin.conflicts import (
    CONFLICTS,
    PACKING_CONFLICTS,
    Conflict,
    check_conflicts,
    check_starting_adapter,
)
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.recognition import TRAINER_CLS

# key: a value that clashes, and what the message tells the user to do
CLASHES: dict[str, tuple[Any, str]] = {
    "nvfp4_merge_aware": (True, "set nvfp4_merge_aware: false"),
    "trainer_cls": ("my.Trainer", "remove trainer_cls"),
    "precompute_ref_log_probs": (False, "remove precompute_ref_log_probs"),
    "rl_adapter_ref_model": (True, "remove rl_adapter_ref_model"),
    "dpo_use_liger_kernel": (True, "set dpo_use_liger_kernel: false"),
    "relora": (True, "remove relora and use lora"),
    "reward_model": (True, "remove reward_model"),
    "process_reward_model": (True, "remove process_reward_model"),
    "processor_type": ("AutoProcessor", "remove processor_type"),
    "streaming": (True, "set streaming: false"),
    "pretraining_dataset": ([{"path": "c4"}], "use datasets: with preference data"),
    "fix_untrained_tokens": ([7], "run it in the SFT stage that makes the base model, and remove it here"),
    "neftune_noise_alpha": (5.0, "use it in the SFT stage, and remove it here"),
    "fsdp": (["full_shard"], "use fsdp_version: 2 with fsdp_config, and remove fsdp"),
    "fsdp_config": ({"fsdp_version": 2}, "set fsdp_config.final_state_dict_type: FULL_STATE_DICT"),
    "fsdp_version": (1, "set fsdp_version: 2"),
    "accelerator_config": (
        {"dispatch_batches": True},
        "set accelerator_config.dispatch_batches and split_batches to false",
    ),
    "use_ray": (True, "remove use_ray and launch with torchrun or accelerate, also on several machines"),
    "context_parallel_size": (2, "set context_parallel_size: 1"),
    "sequence_parallel_degree": (2, "remove sequence_parallel_degree"),
    "context_parallel": ({"size": 2}, "set context_parallel.size: 1"),
    "tensor_parallel_size": (4, "set tensor_parallel_size: 1"),
    "expert_parallel_size": (2, "set expert_parallel_size: 1"),
    "pad_to_multiple_of": (8, "remove pad_to_multiple_of"),
    "optimizer": (
        "galore_adamw_layerwise",
        "choose an optimizer that updates all weights together, such as adamw_torch",
    ),
    "qat": ({"fake_quant_after_n_steps": 10}, "remove qat.fake_quant_after_n_steps"),
    "fp8": (True, "remove fp8 and set bf16: true"),
    "reinit_weights": (True, "save a model with random weights, set base_model to it, and remove reinit_weights"),
    "llmcompressor": ({"recipe": {}}, "remove llmcompressor, and compress the final model"),
    "plugins": (
        ["sdpo_plugin.SDPOPlugin", "axolotl.integrations.grokfast.GrokfastPlugin"],
        "remove axolotl.integrations.grokfast.GrokfastPlugin",
    ),
    "coreweave": ({"async_publish": True}, "remove coreweave"),
    "dpo_padding_free": (True, "remove dpo_padding_free"),
    "padding_free": (True, "remove padding_free"),
    "sample_packing": (True, "remove sample_packing"),
}
PARALLEL = ("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size", "expert_parallel_size")
ALL = CONFLICTS + PACKING_CONFLICTS
EACH = pytest.mark.parametrize("conflict", ALL, ids=lambda conflict: conflict.key)


def refusal(cfg: dict[str, Any], conflicts: tuple[Conflict, ...] = CONFLICTS) -> str:
    with pytest.raises(ConfigError) as caught:
        check_conflicts(cfg, conflicts)
    return str(caught.value)


def test_every_conflict_is_listed_once_and_tested() -> None:
    assert [conflict.key for conflict in ALL] == list(CLASHES)


@EACH
def test_clashing_value_is_refused_with_key_value_reason_and_remedy(conflict: Conflict) -> None:
    value, remedy = CLASHES[conflict.key]
    assert refusal({conflict.key: value}, ALL) == (
        f"rl: sdpo conflicts with {conflict.key}: {value!r}: {conflict.why}; {remedy}."
    )


@EACH
def test_a_reason_is_a_sentence_of_its_own(conflict: Conflict) -> None:
    assert len(conflict.why.split()) >= 5


@EACH
def test_key_that_is_not_set_passes(conflict: Conflict) -> None:
    check_conflicts({"rl": "sdpo"}, (conflict,))
    check_conflicts({conflict.key: None}, (conflict,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            pytest.param(key, False, id=f"{key}-False")
            for key in CLASHES
            if key not in ("precompute_ref_log_probs", *PARALLEL)
        ),
        pytest.param("precompute_ref_log_probs", True, id="precompute_ref_log_probs-True"),
        *(pytest.param(key, 1, id=f"{key}-1") for key in PARALLEL),
        pytest.param("trainer_cls", TRAINER_CLS, id="trainer_cls-ours"),
    ],
)
def test_harmless_value_passes(key: str, value: object) -> None:
    check_conflicts({key: value}, ALL)


def test_harmless_values_together_pass() -> None:
    check_conflicts({"rl": "sdpo", "learning_rate": 1e-6, "trl": {"beta": 0.1}, "relora": False}, ALL)


@pytest.mark.parametrize("adapter", [None, "llama-adapter", ["lora"]])
def test_an_adapter_to_start_from_needs_one_that_trains(adapter: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_starting_adapter({"lora_model_dir": "out/sft", "adapter": adapter})
    assert str(caught.value) == (
        "rl: sdpo conflicts with lora_model_dir: 'out/sft': it is an adapter for the steps to start from, and they do "
        f"not train one of its kind (adapter: {adapter!r}); set adapter: lora or qlora, or merge it first (axolotl "
        "merge-lora), set base_model to the merged model, and remove lora_model_dir."
    )


@pytest.mark.parametrize(
    ("key", "cfg"),
    [
        ("peft_init_lora_weights: 'pissa'", {"peft_init_lora_weights": "pissa"}),
        ("peft.loftq_config: {'loftq_bits': 4}", {"peft": {"loftq_config": {"loftq_bits": 4}}}),
    ],
)
def test_an_adapter_to_start_from_is_not_drawn(key: str, cfg: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"those that {key} would draw") as caught:
        check_starting_adapter({"lora_model_dir": "out/sft", "adapter": "lora", **cfg})
    assert str(caught.value).endswith(f"remove {key.partition(':')[0]}.")


@pytest.mark.parametrize(
    "cfg",
    [
        {"adapter": None},
        {"lora_model_dir": None, "adapter": None, "peft_init_lora_weights": "pissa"},
        {"lora_model_dir": "out/sft", "adapter": "lora"},
        {"lora_model_dir": "out/sft", "adapter": "qlora", "peft": {"loftq_config": None}},
    ],
    ids=["none", "unset", "lora", "qlora"],
)
def test_an_adapter_to_start_from_passes(cfg: dict[str, object]) -> None:
    check_starting_adapter(cfg)
    check_conflicts({"lora_model_dir": "out/sft"})


@pytest.mark.parametrize(
    "cfg", [{"resume_from_checkpoint": "out/c-1"}, {"auto_resume_from_checkpoints": True}], ids=str
)
def test_resuming_a_run_is_no_conflict(cfg: dict[str, object]) -> None:
    check_conflicts(cfg, ALL)


def test_several_conflicts_are_reported_in_one_message() -> None:
    lines = refusal({"relora": True, "fsdp": ["full_shard"], "trainer_cls": "my.Trainer"}).splitlines()
    assert [line.split(": ")[1:3] for line in lines] == [
        ["sdpo conflicts with trainer_cls", "'my.Trainer'"],
        ["sdpo conflicts with relora", "True"],
        ["sdpo conflicts with fsdp", "['full_shard']"],
    ]


def test_moving_reference_of_the_host_is_refused() -> None:
    assert refusal({"trl": {"sync_ref_model": True}}) == (
        "rl: sdpo conflicts with trl.sync_ref_model: True: there is no second model to sync; remove "
        "trl.sync_ref_model, and set sdpo.reference_refresh for a reference that moves within a step."
    )


@pytest.mark.parametrize("trl", [None, {}, {"sync_ref_model": False}, {"sync_ref_model": None}], ids=repr)
def test_still_reference_of_the_host_passes(trl: dict[str, Any] | None) -> None:
    check_conflicts({"trl": trl})


@pytest.mark.parametrize(
    ("config", "clashes"),
    [
        ({"state_dict_type": "FULL_STATE_DICT"}, False),
        ({"fsdp_state_dict_type": "FULL_STATE_DICT"}, False),
        ({"state_dict_type": "SHARDED_STATE_DICT", "final_state_dict_type": "FULL_STATE_DICT"}, False),
        ({"state_dict_type": "FULL_STATE_DICT", "final_state_dict_type": "SHARDED_STATE_DICT"}, True),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, True),
        ({"reshard_after_forward": True}, True),
        ("full", True),
    ],
    ids=repr,
)
def test_fsdp_has_to_write_whole_models(config: Any, clashes: bool) -> None:
    if clashes:
        assert "saved in parts" in refusal({"fsdp_config": config})
    else:
        check_conflicts({"fsdp_config": config, "fsdp_version": 2})


@pytest.mark.parametrize(
    ("config", "clashes"),
    [
        ({"split_batches": True}, True),
        ({"split_batches": False, "dispatch_batches": True}, True),
        ({"split_batches": False, "dispatch_batches": None}, False),
        ({"even_batches": True}, False),
        ("split", True),
    ],
    ids=repr,
)
def test_ranks_have_batches_of_their_own(config: Any, clashes: bool) -> None:
    if clashes:
        assert "parts chosen from rejected rows" in refusal({"accelerator_config": config})
    else:
        check_conflicts({"accelerator_config": config})


@pytest.mark.parametrize(
    ("name", "clashes"),
    [
        ("adamw_torch", False),
        ("galore_adamw", False),
        ("apollo_adamw_layerwise", True),
        ("lomo", True),
        ("adalomo", True),
    ],
)
def test_optimizers_in_hooks(name: str, clashes: bool) -> None:
    if clashes:
        assert f"optimizer: {name!r}: it updates weights from hooks" in refusal({"optimizer": name})
    else:
        check_conflicts({"optimizer": name})


def test_rounding_from_the_first_update_on_is_no_conflict() -> None:
    check_conflicts({"qat": {"weight_dtype": "int8"}})


@pytest.mark.parametrize("nothing", ["", [], {}, 0], ids=repr)
def test_value_that_says_no_passes(nothing: object) -> None:
    """A value that switches a feature off is no conflict."""
    check_conflicts({key: nothing for key in CLASHES if key not in PARALLEL}, ALL)


@pytest.mark.parametrize(("size", "clashes"), [(None, False), (0, False), (1, False), (2, True), ("2", True)], ids=repr)
def test_number_of_parallel_parts(size: object, clashes: bool) -> None:
    conflicts = [conflict for conflict in ALL if conflict.key in PARALLEL]
    assert [conflict.clashes(size) for conflict in conflicts] == [clashes] * len(PARALLEL)


@pytest.mark.parametrize("value", ["many", [2], {}, float("inf"), 2])
def test_split_sequences_and_layers_are_refused_whatever_their_number_looks_like(value: object) -> None:
    for key in PARALLEL:
        with pytest.raises(ConfigError, match=f"rl: sdpo conflicts with {key}: "):
            check_conflicts({key: value})


@pytest.mark.parametrize("value", [1, "on", [True]])
def test_trl_block_that_is_no_block_is_left_to_the_host(value: object) -> None:
    check_conflicts({"trl": value})
