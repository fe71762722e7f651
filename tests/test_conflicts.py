"""Host keys that contradict `rl: sdpo`."""

from typing import Any

import pytest

from sdpo_plugin.conflicts import (
    CONFLICTS,
    PACKING_CONFLICTS,
    Conflict,
    check_conflicts,
    check_data_sources,
    check_losses,
    check_pool,
    check_starting_adapter,
)
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.recognition import TRAINER_CLS

# key: a value that clashes, and what the message tells the user to do
CLASHES: dict[str, tuple[Any, str]] = {
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
    "use_ray": (True, "remove use_ray and launch with torchrun or accelerate, also on several machines"),
    "context_parallel_size": (2, "set context_parallel_size: 1"),
    "tensor_parallel_size": (4, "set tensor_parallel_size: 1"),
    "dpo_padding_free": (True, "remove dpo_padding_free"),
    "padding_free": (True, "remove padding_free"),
    "sample_packing": (True, "remove sample_packing"),
}
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
            if key not in ("precompute_ref_log_probs", "context_parallel_size", "tensor_parallel_size")
        ),
        pytest.param("precompute_ref_log_probs", True, id="precompute_ref_log_probs-True"),
        pytest.param("context_parallel_size", 1, id="context_parallel_size-1"),
        pytest.param("tensor_parallel_size", 1, id="tensor_parallel_size-1"),
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
    ("datasets", "has_steps", "cuts_rows"),
    [
        pytest.param([{"path": "a"}, {"path": "b"}], False, False, id="an-entry-per-step"),
        pytest.param(None, True, False, id="steps"),
        pytest.param([], True, False, id="steps-and-an-empty-list"),
        pytest.param([{"path": "a"}], False, True, id="one-entry-cut-by-rows"),
        pytest.param([{"path": "a"}, {"path": "b"}], False, True, id="two-entries-cut-by-rows"),
    ],
)
def test_data_sources_that_pass(datasets: list[dict[str, Any]] | None, has_steps: bool, cuts_rows: bool) -> None:
    check_data_sources({"datasets": datasets}, has_steps, cuts_rows)


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


def test_nothing_cannot_be_cut_by_rows() -> None:
    with pytest.raises(ConfigError, match="rl: sdpo has no data: set datasets: with one entry per step"):
        check_data_sources({}, has_steps=False, cuts_rows=True)


@pytest.mark.parametrize("nothing", ["", [], {}, 0], ids=repr)
def test_value_that_says_no_passes(nothing: object) -> None:
    """A value that switches a feature off is no conflict."""
    numbers = {"context_parallel_size", "tensor_parallel_size"}
    check_conflicts({key: nothing for key in CLASHES if key not in numbers}, ALL)


@pytest.mark.parametrize(("size", "clashes"), [(None, False), (0, False), (1, False), (2, True), ("2", True)], ids=repr)
def test_number_of_parallel_parts(size: object, clashes: bool) -> None:
    conflicts = [conflict for conflict in ALL if conflict.key.endswith("_parallel_size")]
    assert [conflict.clashes(size) for conflict in conflicts] == [clashes] * 2


@pytest.mark.parametrize(
    ("datasets", "has_steps", "message"),
    [
        pytest.param(
            [{"path": "a"}, {"path": "b"}],
            True,
            "both datasets: (2 entries) and sdpo.steps are set; keep sdpo.steps, "
            "or remove it and let each entry of datasets: be one step.",
            id="both",
        ),
        pytest.param(
            None,
            False,
            "rl: sdpo has no data: set datasets: with one entry per step, or sdpo.steps with datasets of its own.",
            id="neither",
        ),
        pytest.param(
            [{"path": "a.jsonl"}],
            False,
            "rl: sdpo with one entry in datasets: (path: 'a.jsonl') would be a single step; add an entry per step, "
            "or cut it by rows with sdpo.partition (e.g. strategy: easy_to_hard, unit: row, num_steps: 2), "
            "or, to mean one step, write it under sdpo.steps; for plain DPO set rl: dpo.",
            id="one-entry",
        ),
    ],
)
def test_data_sources_that_are_refused(datasets: list[dict[str, Any]] | None, has_steps: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_data_sources({"datasets": datasets}, has_steps)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"dpo_loss_type": ["sigmoid", "hinge"], "dpo_loss_weights": [1.0]},
            "step orca: dpo_loss_type: ['sigmoid', 'hinge'] has 2 losses and dpo_loss_weights: [1.0] has 1 weights; "
            "give each loss one weight.",
        ),
        (
            {"dpo_loss_type": ["exo_pair"]},
            "step orca: dpo_loss_type: ['exo_pair'] needs dpo_label_smoothing above 0, and it is None; "
            "set e.g. 1.0e-3.",
        ),
    ],
    ids=["weights", "exo_pair"],
)
def test_losses_that_cannot_be_computed_are_refused(cfg: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_losses("step orca", cfg)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"dpo_loss_type": ["ipo"]},
        {"dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, 0.1]},
        {"dpo_loss_type": ["exo_pair"], "dpo_label_smoothing": 0.001},
    ],
    ids=["default", "ipo", "two", "exo_pair"],
)
def test_losses_that_are_fine(cfg: dict[str, object]) -> None:
    check_losses("step orca", cfg)


def test_loss_that_trl_does_not_have_is_refused_before_the_first_step() -> None:
    with pytest.raises(
        ConfigError, match=r"step orca: dpo_loss_type: 'sigmod' is no loss of TRL's; set one or more of si"
    ):
        check_losses("step orca", {"dpo_loss_type": ["ipo", "sigmod"], "dpo_loss_weights": [1, 1]})


@pytest.mark.parametrize("value", ["many", [2], {}, float("inf"), 2])
def test_split_sequences_and_layers_are_refused_whatever_their_number_looks_like(value: object) -> None:
    for key in ("context_parallel_size", "tensor_parallel_size"):
        with pytest.raises(ConfigError, match=f"rl: sdpo conflicts with {key}: "):
            check_conflicts({key: value})


@pytest.mark.parametrize("value", [1, "on", [True]])
def test_trl_block_that_is_no_block_is_left_to_the_host(value: object) -> None:
    check_conflicts({"trl": value})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"datasets: 3 is not a list"),
        ("x.jsonl", r"datasets: 'x.jsonl' is not a list"),
        ({"path": "x"}, r"datasets: \{'path': 'x'\} is not a list"),
        ([{"path": "x"}, None], r"datasets\[1\]: None is not a block"),
        ([{1: "x"}], r"datasets\[0\]: \{1: 'x'\} is not a block"),
    ],
)
def test_data_sets_of_another_shape_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data_sources({"datasets": value}, has_steps=False)
    with pytest.raises(ConfigError, match="test_" + message):
        check_data_sources({"datasets": [{"path": "x"}] * 2, "test_datasets": value}, has_steps=False)


def test_weights_are_one_for_each_entry() -> None:
    check_pool({"datasets": [{"path": "a"}]}, None, None)
    check_pool({"datasets": [{"path": "a"}, {"path": "b"}]}, [1.0, 2.0], None)
    with pytest.raises(ConfigError) as caught:
        check_pool({"datasets": [{"path": "a"}] * 3}, [1.0, 2.0], None)
    assert str(caught.value) == (
        "sdpo.partition.weights: [1.0, 2.0] has 2 numbers and datasets: 3 entries; "
        "give each entry one weight, in order."
    )


def test_rows_that_the_host_fetches_prepared_have_no_column() -> None:
    check_pool({"datasets": [{"path": "a"}]}, None, "gap")
    check_pool({"datasets": [{"path": "a"}], "push_dataset_to_hub": "me/rows"}, None, None)
    with pytest.raises(ConfigError) as caught:
        check_pool({"datasets": [{"path": "a"}], "push_dataset_to_hub": "me/rows"}, None, "gap")
    assert str(caught.value) == (
        "sdpo.partition.column: 'gap' conflicts with push_dataset_to_hub: 'me/rows': the host fetches the rows that "
        "lie there, which are prepared without the column; remove push_dataset_to_hub."
    )
