"""Settings that may change before a run is resumed, and settings that may not: examples written by hand."""

import re
from typing import Any

import pytest

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.run_dir.drift import (
    changes,
    require_same_run,
    require_same_step,
    run_settings,
    step_settings,
    without_secrets,
)

CONFIG = {
    "output_dir": "out",
    "logging_steps": 1,
    "save_steps": 10,
    "wandb_project": "p",
    "sequence_len": 2048,
    "adapter": "lora",
    "lora_r": 8,
    "bf16": True,
    "invented_by_a_later_version": 3,
    "load_in_8bit": None,
    "learning_rate": 1e-6,
    "rl_beta": 0.1,
    "warmup_steps": 5,
    "lr_scheduler": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "world_size": 2,
    "deepspeed": {"zero_optimization": {"stage": 3}},
}

# --- which keys are compared where ---


def test_run_settings_are_everything_that_is_not_known_to_be_free_or_a_steps_own() -> None:
    assert run_settings(CONFIG) == {
        "adapter": "lora",
        "bf16": True,
        "invented_by_a_later_version": 3,
        "lora_r": 8,
        "sequence_len": 2048,
    }


def test_step_settings_are_hyper_parameters_and_how_batches_are_shared_out() -> None:
    assert step_settings(CONFIG) == {
        "deepspeed": {"zero_optimization": {"stage": 3}},
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-6,
        "lr_scheduler": "cosine",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "micro_batch_size": 2,
        "rl_beta": 0.1,
        "warmup_steps": 5,
        "world_size": 2,
    }


def test_settings_stand_in_one_order() -> None:
    backwards = dict(reversed(CONFIG.items()))
    assert list(run_settings(backwards)) == list(run_settings(CONFIG)) == sorted(run_settings(CONFIG))


@pytest.mark.parametrize(
    "key",
    "output_dir base_model revision_of_model datasets test_datasets val_set_size resume_from_checkpoint "
    "auto_resume_from_checkpoints logging_steps save_steps save_total_limit wandb_project hub_model_id mlflow_uri "
    "dataloader_num_workers dataset_processes local_rank rl sdpo saves_per_epoch profiler_steps vllm".split(),
)
def test_free_key_is_compared_nowhere(key: str) -> None:
    """Data, models and tokenizers among them: those are compared by what they hold."""
    assert run_settings({key: 1}) == step_settings({key: 1}) == {}


@pytest.mark.parametrize(
    "key",
    "learning_rate num_epochs max_steps rl_beta weight_decay optimizer seed trl max_grad_norm dpo_loss_type "
    "dpo_label_smoothing lr_scheduler cosine_min_lr_ratio warmup_ratio adam_beta1 eval_steps loraplus_lr_ratio "
    "optim_target_modules gradient_checkpointing early_stopping_patience load_best_model_at_end "
    "micro_batch_size gradient_accumulation_steps world_size deepspeed packed".split(),
)
def test_key_of_a_step_is_compared_with_the_step_alone(key: str) -> None:
    assert (run_settings({key: 1}), step_settings({key: 1})) == ({}, {key: 1})


@pytest.mark.parametrize(
    "key", ["sequence_len", "lora_alpha", "attn_implementation", "bf16", "savings", "xsave_", "dpo"]
)
def test_any_other_key_is_compared_with_the_run(key: str) -> None:
    assert (run_settings({key: 1}), step_settings({key: 1})) == ({key: 1}, {})


# --- secrets ---


@pytest.mark.parametrize(
    "key",
    "token hub_token hf_token HF_TOKEN access_token api_key apikey wandb_api_key openai_apikey client_secret password "
    "db_passwd aws_credentials credential".split(),
)
def test_secret_never_gets_into_the_ledger(key: str) -> None:
    assert without_secrets({"nested": [{key: "hush", "kept": 1}]}) == {"nested": [{"kept": 1}]}
    assert run_settings({key: "hush"}) == step_settings({key: "hush"}) == {}


@pytest.mark.parametrize(
    "key",
    "tokens special_tokens eot_tokens additional_special_tokens bos_token eos_token pad_token unk_token "
    "max_new_tokens tokenizer_type token_ids secretary passwords_file keyboard monkey".split(),
)
def test_what_only_sounds_like_a_secret_is_compared(key: str) -> None:
    assert run_settings({key: "<|x|>"}) == {key: "<|x|>"}
    assert run_settings({"special_tokens": {key: "<|x|>"}}) == {"special_tokens": {key: "<|x|>"}}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("https://user:pa55@host:443/a/b", "https://host:443/a/b"),
        ("https://ghp_abc@github.com/a", "https://github.com/a"),
        ("https://user:p@55@host/a", "https://host/a"),
        ("https://host/a?sig=hush&x=1", "https://host/a"),
        ("s3://user:pa55@bucket/key?token=hush", "s3://bucket/key"),
        ("see https://u:p@h/a?b=c and https://h/d?e=f too", "see https://h/a and https://h/d too"),
        ("https://host/a@v1", "https://host/a@v1"),
        ("who? someone@example.org", "who? someone@example.org"),
        ("C://a", "C://a"),
    ],
)
def test_credentials_and_queries_of_urls_are_removed(value: str, kept: str) -> None:
    assert without_secrets(value) == kept
    assert without_secrets({"a": [value]}) == {"a": [kept]}


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "text", [], {}, ["a", {"b": [1]}]], ids=repr)
def test_other_values_are_left_alone(value: Any) -> None:
    assert without_secrets(value) == value


def test_tuples_become_lists_and_keys_strings_as_in_json() -> None:
    assert without_secrets({1: (1, 2)}) == {"1": [1, 2]}


# --- naming what has changed ---


def test_changes_name_key_and_both_values_in_order() -> None:
    assert changes({"b": 1, "a": 2, "gone": "x"}, {"a": 3, "new": [1], "b": 1}) == [
        "a is 3, and it was 2",
        "gone is not set, and it was 'x'",
        "new is [1], and it was not set",
    ]


def test_key_that_is_not_set_is_the_same_as_none() -> None:
    assert changes({"a": None}, {}) == changes({}, {"a": None}) == []


def test_digest_and_long_value_are_shortened() -> None:
    before, now = "a1b2c3d4e5f6" + "0" * 52, "f" * 64
    assert changes({"d": before}, {"d": now}) == ["d is ffffffffffff…, and it was a1b2c3d4e5f6…"]
    # repr of 100 letters: a quote and 76 of them
    assert changes({"v": 1}, {"v": "x" * 100}) == [f"v is '{'x' * 76}…, and it was 1"]
    assert changes({"v": 1}, {"v": "x" * 78}) == [f"v is '{'x' * 78}', and it was 1"]


REMEDY = (
    "Put it back, or train into another output_dir. Steps that have not begun may be given other hyper-parameters, "
    "under sdpo.steps."
)


def refusal(*arguments: Any, check: Any = require_same_run) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*arguments)
    return str(caught.value)


def test_rows_with_what_their_log_probs_depend_on_are_told_apart() -> None:
    rows = {"rows": 1200, "digest": "ab" * 32}
    said = refusal({"rows": {"source 1": rows}}, {"rows": {"source 1": {**rows, "sequence_len": 64}}})
    known = "1,200 rows with digest abababababab…"
    assert f"rows: source 1 is {known}, sequence_len: 64, and it was {known}\n" in said


def test_run_with_other_facts_is_refused_with_a_line_for_each() -> None:
    before = {"base_model": {"content": "a" * 64}, "config": {"lora_r": 8, "bf16": True}, "rows": {"source 1": "x"}}
    now = {"base_model": {"content": "b" * 64}, "config": {"lora_r": 16, "bf16": True}, "new": {"a": "b"}}
    assert refusal(before, now) == (
        "the run in output_dir cannot be resumed: since it began this has changed:\n"
        "  base_model: content is bbbbbbbbbbbb…, and it was aaaaaaaaaaaa…\n"
        "  config: lora_r is 16, and it was 8\n"
        "  rows: source 1 is not set, and it was 'x'\n"
        f"  new: a is 'b', and it was not set\n{REMEDY}"
    )


def test_newer_host_does_not_cost_the_run() -> None:
    require_same_run({"versions": {"trl": "1.9.0"}, "a": {}}, {"versions": {"trl": "1.9.1", "peft": "1"}, "a": {}})


def test_run_with_the_same_facts_is_resumed() -> None:
    facts = {"base_model": {"content": "a" * 64}, "config": {"lora_r": 8}}
    require_same_run(facts, {"config": {"lora_r": 8}, "base_model": {"content": "a" * 64}})


def test_step_with_other_hyper_parameters_is_refused() -> None:
    before, now = {"learning_rate": 1e-6, "rl_beta": 0.1}, {"learning_rate": 5e-7, "rl_beta": 0.1}
    for from_checkpoint in (False, True):
        assert refusal("orca", before, now, from_checkpoint, check=require_same_step) == (
            "step orca cannot be resumed: since it began this has changed:\n"
            f"  learning_rate is 5e-07, and it was 1e-06\n{REMEDY}"
        )


@pytest.mark.parametrize(
    "key",
    "micro_batch_size gradient_accumulation_steps world_size deepspeed packed gradient_checkpointing "
    "activation_offloading".split(),
)
def test_how_batches_are_shared_out_and_computed_binds_only_a_half_trained_step(key: str) -> None:
    require_same_step("orca", {key: 1, "seed": 7}, {key: 2, "seed": 7}, from_checkpoint=False)
    require_same_step("orca", {key: 1}, {}, from_checkpoint=False)
    require_same_step("orca", {}, {key: 2}, from_checkpoint=False)
    message = refusal("orca", {key: 1, "seed": 7}, {key: 2, "seed": 7}, True, check=require_same_step)
    assert re.search(rf"\n  {key}(?: \(.+\))? is 2, and it was 1\nPut", message)


@pytest.mark.parametrize(("before", "said"), [(True, "true"), (False, "false")])
def test_another_forward_pass_is_refused_with_what_to_set(before: bool, said: str) -> None:
    """`auto`, which may choose otherwise on another machine, is no value to put back."""
    with pytest.raises(ConfigError) as caught:
        require_same_step("orca", {"packed": before}, {"packed": not before}, from_checkpoint=True)
    assert f"packed (set sdpo.packed: {said}) is {not before}, and it was {before}" in str(caught.value)


def test_step_with_the_same_settings_is_resumed() -> None:
    require_same_step("orca", step_settings(CONFIG), step_settings({**CONFIG, "save_steps": 99}), from_checkpoint=True)
