"""The `sdpo:` block: what it takes, what it refuses, and the messages."""

import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from sdpo_plugin.args import SDPOArgs, SDPOConfig
from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.partition import step_sizes
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.steps_args import OVERRIDES, HookRows, StepArgs, step_names

DATA = [{"path": "pairs.jsonl", "type": "chatml.intel"}]
BLOCK_KEYS = [
    *("steps", "partition", "reference", "policy_init", "reference_refresh", "packed", "check_data", "export_steps"),
    *("reference_cache", "diagnostics", "lm_eval", "before_step", "after_step"),
]
PARTITION_KEYS = (
    "strategy unit score column descending num_steps fractions pool drop_hardest rescore max_rows weights seed".split()
)
STEP_KEYS = [
    "name",
    "datasets",
    "from_hook",
    "learning_rate",
    "num_epochs",
    "max_steps",
    "rl_beta",
    "dpo_loss_type",
    "dpo_loss_weights",
    "dpo_label_smoothing",
    "dpo_ld_alpha",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "sequence_len",
    "lr_scheduler",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "val_set_size",
    "test_datasets",
    "reference_refresh",
]


def step(**keys: Any) -> dict[str, Any]:
    return {"datasets": DATA, **keys}


def parse_step(**keys: Any) -> StepArgs:
    steps = parse_block({"steps": [step(**keys)]}).steps
    assert steps is not None
    return steps[0]


def refusal(block: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_block(block)
    return str(caught.value)


# --- the list of options ---


def test_option_list_is_frozen() -> None:
    assert list(SDPOConfig.model_fields) == BLOCK_KEYS
    assert list(StepArgs.model_fields) == STEP_KEYS
    assert list(PartitionArgs.model_fields) == PARTITION_KEYS


def test_a_step_overrides_every_key_of_the_host_that_it_has() -> None:
    """All but name, data, and what is the plugin's own."""
    assert list(OVERRIDES) == STEP_KEYS[3:-1]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(model, name, id=f"{model.__name__}.{name}")
        for model in (SDPOArgs, SDPOConfig, StepArgs, HookRows, PartitionArgs, RefreshArgs)
        for name in model.model_fields
    ],
)
def test_every_option_is_described(model: type[BaseModel], name: str) -> None:
    assert re.fullmatch(r".{20,}[.…]", model.model_fields[name].description or "")


@pytest.mark.parametrize("block", [None, {}], ids=["absent", "empty"])
def test_defaults(block: dict[str, Any] | None) -> None:
    assert parse_block(block).model_dump() == {
        "steps": None,
        "partition": None,
        "reference": "previous",
        "policy_init": "previous",
        "reference_refresh": None,
        "packed": "auto",
        "check_data": "error",
        "export_steps": "all",
        "reference_cache": None,
        "diagnostics": {"matrix": True, "max_rows": 512, "seed": 42},
        "lm_eval": None,
        "before_step": None,
        "after_step": None,
    }


@pytest.mark.parametrize("reference", ["M_0", "M_1", "M_12"])
def test_reference_that_reads_like_a_model_of_the_run(reference: str) -> None:
    """Plan, report and the start gate know M_{t-1} by this name."""
    assert refusal({"reference": reference}) == (
        f"sdpo.reference: {reference!r} reads like the model of a step in plan and report; write './{reference}' for a "
        "directory of that name, or set previous, base, or the path or hub id of a model."
    )


@pytest.mark.parametrize("reference", ["./M_1", "models/M_1", "M_", "M_1b", "org/M_1", "./base"])
def test_reference_that_no_model_of_the_run_is_called(reference: str) -> None:
    assert parse_block({"reference": reference}).reference == reference


def test_everything_that_is_written_is_kept() -> None:
    written = {
        "steps": [
            {
                "name": "orca",
                "datasets": DATA,
                "from_hook": None,
                "learning_rate": 5e-7,
                "num_epochs": 1.0,
                "max_steps": 10,
                "rl_beta": 0.3,
                "dpo_loss_type": ["sigmoid"],
                "dpo_loss_weights": [0.5],
                "dpo_label_smoothing": 0.1,
                "dpo_ld_alpha": 0.5,
                "micro_batch_size": 2,
                "gradient_accumulation_steps": 4,
                "sequence_len": 1024,
                "lr_scheduler": "cosine",
                "warmup_ratio": 0.1,
                "warmup_steps": 0,
                "weight_decay": 0.01,
                "val_set_size": 0.0,
                "test_datasets": [{"path": "heldout.jsonl"}],
                "reference_refresh": None,
            }
        ],
        "partition": None,
        "reference": "org/model",
        "policy_init": "base",
        "reference_refresh": None,
        "packed": "auto",
        "check_data": "error",
        "export_steps": "last",
        "reference_cache": "cache",
        "diagnostics": {"matrix": False, "max_rows": 100, "seed": 7},
        "lm_eval": {
            "tasks": [{"task": "hellaswag", "num_fewshot": 10, "limit": 0.5}],
            "limit": 200.0,
            "num_fewshot": 5,
            "include_path": "tasks",
            "apply_chat_template": True,
            "batch_size": 4,
            "steps": "last",
        },
        "before_step": "own.hooks:make_pairs",
        "after_step": "own:look",
    }
    assert parse_block(written).model_dump() == written


def test_yaml_number_without_a_dot_is_a_number() -> None:
    """YAML 1.1 reads `5e-7` as text."""
    assert parse_step(learning_rate="5e-7").learning_rate == 5e-7


# --- unknown keys ---


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [("refrence", "base", "reference"), ("step", [], "steps"), ("export_step", "all", "export_steps")],
    ids=lambda part: str(part),
)
def test_unknown_key_of_the_block_names_key_value_and_what_was_meant(key: str, value: object, meant: str) -> None:
    assert refusal({key: value}) == (
        f"sdpo.{key}: {value!r} is set, but there is no such key; did you mean {meant!r}? "
        f"Keys here: {', '.join(BLOCK_KEYS)}."
    )


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("learning_rte", 1e-6, "learning_rate"),
        ("dataset", [], "datasets"),
        ("dpo_losstype", "ipo", "dpo_loss_type"),
        ("warmup_step", 5, "warmup_steps"),
    ],
    ids=lambda part: str(part),
)
def test_unknown_key_of_a_step_names_key_value_and_what_was_meant(key: str, value: object, meant: str) -> None:
    assert refusal({"steps": [step(), step(**{key: value})]}) == (
        f"sdpo.steps[1].{key}: {value!r} is set, but there is no such key; did you mean {meant!r}? "
        f"Keys here: {', '.join(STEP_KEYS)}."
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        pytest.param(
            {"seed": 42},
            "sdpo.seed: 42 is set, but there is no such key; "
            "Keys here: steps, partition, reference, policy_init, reference_refresh, packed, check_data, export_steps, "
            "reference_cache, diagnostics, lm_eval, before_step, after_step.",
            id="block",
        ),
        pytest.param(
            {"steps": [step(optimizer="lion")]},
            "sdpo.steps[0].optimizer: 'lion' is set, but there is no such key; Keys here: name, datasets, ",
            id="step",
        ),
    ],
)
def test_key_like_no_other_gets_no_guess(block: dict[str, Any], message: str) -> None:
    assert refusal(block).startswith(message)


def test_all_mistakes_are_reported_at_once() -> None:
    lines = refusal({"foo": 1, "export_steps": "some", "steps": [step(max_steps=0)]}).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["sdpo.steps[0].max_steps:", "sdpo.export_steps:", "sdpo.foo:"]


# --- wrong values ---


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("learning_rate", 0, "Input should be greater than 0"),
        ("learning_rate", math.nan, "Input should be a finite number"),
        ("num_epochs", -1, "Input should be greater than 0"),
        ("max_steps", 0, "Input should be greater than 0"),
        ("max_steps", "many", "Input should be a valid integer, unable to parse string as an integer"),
        ("rl_beta", 0.0, "Input should be greater than 0"),
        ("dpo_loss_type", "sigmoid", "Input should be a valid list"),
        ("dpo_loss_type", [], "List should have at least 1 item after validation, not 0"),
        ("dpo_label_smoothing", 0.5, "Input should be less than 0.5"),
        ("dpo_label_smoothing", -0.1, "Input should be greater than or equal to 0"),
        ("dpo_loss_weights", [], "List should have at least 1 item after validation, not 0"),
        ("dpo_ld_alpha", 1.1, "Input should be less than or equal to 1"),
        ("dpo_ld_alpha", -0.1, "Input should be greater than or equal to 0"),
        ("micro_batch_size", 0, "Input should be greater than 0"),
        ("micro_batch_size", 1.5, "Input should be a valid integer, got a number with a fractional part"),
        ("gradient_accumulation_steps", 0, "Input should be greater than 0"),
        ("sequence_len", 0, "Input should be greater than 0"),
        ("lr_scheduler", 3, "Input should be a valid string"),
        ("warmup_ratio", 1, "Input should be less than 1"),
        ("warmup_ratio", -0.1, "Input should be greater than or equal to 0"),
        ("warmup_steps", -1, "Input should be greater than or equal to 0"),
        ("weight_decay", -0.1, "Input should be greater than or equal to 0"),
        ("val_set_size", 1, "Input should be less than 1"),
        ("val_set_size", -0.1, "Input should be greater than or equal to 0"),
        ("test_datasets", [], "List should have at least 1 item after validation, not 0"),
        ("datasets", [], "List should have at least 1 item after validation, not 0"),
        ("name", 7, "Input should be a valid string"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_wrong_value_of_a_step(key: str, value: object, why: str) -> None:
    assert refusal({"steps": [step(**{key: value})]}) == f"sdpo.steps[0].{key}: {value!r} is not valid: {why}."


@pytest.mark.parametrize(
    ("block", "message"),
    [
        pytest.param(
            {"export_steps": "none"},
            "sdpo.export_steps: 'none' is not valid: Input should be 'all' or 'last'.",
            id="export_steps",
        ),
        pytest.param(
            {"reference": ""},
            "sdpo.reference: '' is not valid: String should have at least 1 character.",
            id="reference-empty",
        ),
        pytest.param(
            {"reference": False}, "sdpo.reference: False is not valid: Input should be a valid string.", id="reference"
        ),
        pytest.param(
            {"policy_init": "last"},
            "sdpo.policy_init: 'last' is not valid: Input should be 'previous' or 'base'.",
            id="policy_init",
        ),
        pytest.param(
            {"reference_refresh": 64},
            "sdpo.reference_refresh: 64 is not valid: a block of keys is expected; keys: every, kl_above.",
            id="number-for-a-block",
        ),
        pytest.param(
            {"diagnostics": {"rows": 3}},
            "sdpo.diagnostics.rows: 3 is set, but there is no such key; did you mean 'max_rows'? Keys here: matrix, "
            "max_rows, seed.",
            id="key-of-diagnostics",
        ),
        pytest.param(
            {"steps": []},
            "sdpo.steps: [] is not valid: List should have at least 1 item after validation, not 0.",
            id="no-steps",
        ),
        pytest.param(
            {"steps": {"datasets": DATA}},
            f"sdpo.steps: { ({'datasets': DATA})!r} is not valid: Input should be a valid list.",
            id="one-step-without-its-dash",
        ),
        pytest.param(
            {"steps": [{"name": "a"}]},
            "sdpo.steps[0]: datasets is missing; set it to a list of host dataset entries, or set from_hook where "
            "sdpo.before_step makes the rows.",
            id="no-data",
        ),
        pytest.param(
            {"steps": [{"datasets": ["pairs.jsonl"]}]},
            "sdpo.steps[0].datasets[0]: 'pairs.jsonl' is not valid: Input should be a valid dictionary.",
            id="path-instead-of-entry",
        ),
    ],
)
def test_wrong_value_of_the_block(block: dict[str, Any], message: str) -> None:
    assert refusal(block) == message


def test_rescore_that_is_off_is_not_set() -> None:
    strategy = {"strategy": "easy_to_hard", "unit": "row", "num_steps": 2}
    assert parse_block({"partition": {**strategy, "rescore": False}}) == parse_block({"partition": strategy})


@pytest.mark.parametrize("block", [True, "previous", [1], 0], ids=repr)
def test_a_block_that_is_no_block(block: object) -> None:
    assert refusal(block) == f"sdpo: is {block!r}, but a block of keys is expected; keys: {BLOCK_KEYS}"


# --- hooks ---

HOOK = "own.hooks:make_pairs"
MADE = {"from_hook": {"type": "chatml.intel"}}


def test_rows_of_a_hook_are_an_entry_without_a_path() -> None:
    """The key of the hook stands in the place of a path, and the rest says how the host reads the rows."""
    fields = {"field_messages": "messages", "field_chosen": "good", "field_rejected": "bad"}
    steps = [step(), {"from_hook": {"type": {"field_prompt": "p"}, **fields}}]
    parsed = parse_block({"before_step": HOOK, "steps": steps}).steps
    assert parsed is not None
    assert [one.entries for one in parsed] == [
        DATA,
        [{"path": "before_step", "type": {"field_prompt": "p"}, **fields}],
    ]


@pytest.mark.parametrize("key", ["before_step", "after_step"])
@pytest.mark.parametrize("name", ["make_pairs", "own.hooks.make_pairs", "own/hooks.py:f", ":f", "own:", "own:f.g", ""])
def test_hook_that_names_no_function(key: str, name: str) -> None:
    assert refusal({key: name}) == (
        f"sdpo.{key}: {name!r} names no function; write package.module:function, e.g. my_hooks:make_pairs."
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        pytest.param(
            {"before_step": HOOK, "steps": [step(**MADE)]},
            "sdpo.steps[0]: datasets (1 entries) and from_hook (type: 'chatml.intel') are both set; keep from_hook "
            "where sdpo.before_step makes the rows, and datasets where they are there already.",
            id="both",
        ),
        pytest.param(
            {"before_step": HOOK, "steps": [step(), {**MADE, "val_set_size": 0.1}]},
            "sdpo.steps[1]: val_set_size: 0.1 and from_hook exclude each other: M_0 is evaluated on every held-out "
            "set, before these rows are made; set test_datasets instead.",
            id="held-out",
        ),
        pytest.param(
            {"after_step": HOOK, "steps": [step(), MADE]},
            "sdpo.steps[1].from_hook is set, and sdpo.before_step, which would make its rows, is not; set it to "
            "package.module:function, or give the step datasets.",
            id="no-hook",
        ),
        pytest.param(
            {"before_step": HOOK, "steps": [MADE, step()]},
            "sdpo.steps[0].from_hook: the host builds its trainer with the rows of the first step, before any hook is "
            "called; give the first step datasets.",
            id="first",
        ),
        *(
            pytest.param(
                {"before_step": HOOK, "reference": reference, "steps": [step(), MADE]},
                f"sdpo.reference: {reference!r} and sdpo.steps[1].from_hook exclude each other: the log-probs of such "
                "a reference are computed before step 1, when these rows are not made yet; set reference: previous.",
                id=reference,
            )
            for reference in ("base", "org/model")
        ),
        pytest.param(
            {"before_step": HOOK, "steps": [step(), {"from_hook": {}}]},
            "sdpo.steps[1].from_hook.type is missing; set it to the host's type of these rows, e.g. "
            "chat_template.default.",
            id="no-type",
        ),
        pytest.param(
            {"before_step": HOOK, "steps": [step(), {"from_hook": {"type": "a", "pth": "b"}}]},
            "sdpo.steps[1].from_hook.pth: 'b' is set, but there is no such key; Keys here: type, field_messages, "
            "field_chosen, field_rejected.",
            id="unknown-key",
        ),
    ],
)
def test_rows_that_no_hook_can_make(block: dict[str, Any], message: str) -> None:
    assert refusal(block) == message


# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "/root",
        "a\\b",
        ".hidden",
        "-dash",
        "two words",
        "naïve",
        "a\n",
        "x" * 101,
        "checkpoint-3",
        "sdpo",
        "runs",
        "merged",
        "quantized",
        "tokenizer",
        "additional_chat_templates",
        "model.safetensors",
        "model.safetensors.index.json",
        "README.md",
        "config.json",
        "debug.log",
        "adapter_config.JSON",
        "tokenizer.model",
        "training_args.bin",
        "chat_template.jinja",
        "eval_summary.csv",
        "snapshot.pickle",
        "modeling_llama.py",
        "axolotl_checkpoint.save",
        "tf_model.h5",
        "1.json",
    ],
    ids=repr,
)
def test_name_that_cannot_be_a_directory_of_its_own(name: str) -> None:
    assert refusal({"steps": [step(name=name)]}) == (
        f"sdpo.steps[0].name: a step's name is the directory its model is written to, and {name!r} cannot be one: "
        "use letters, digits, '.', '_' and '-', beginning with a letter or digit; "
        "'checkpoint-…', ['additional_chat_templates', 'merged', 'quantized', 'runs', 'sdpo', 'tokenizer'] and names "
        "that end like a file's ('.json', '.safetensors') are taken."
    )


@pytest.mark.parametrize("name", ["SDPO", "Runs", "Checkpoint-3", "Tokenizer"])
def test_name_that_is_taken_in_another_case(name: str) -> None:
    assert f"{name!r} cannot be one" in refusal({"steps": [step(name=name)]})


@pytest.mark.parametrize(
    "name",
    ["orca", "step-1", "0", "Orca_2.5-easy", "checkpoints", "x" * 100, "v1.5", "ultra-0.2", "orca.v2", "json", "a."],
)
def test_name_that_can_be_a_directory(name: str) -> None:
    assert parse_step(name=name).name == name


def test_steps_without_a_name_are_numbered_by_position() -> None:
    steps = [StepArgs(datasets=DATA), StepArgs(datasets=DATA, name="orca"), StepArgs(datasets=DATA)]
    assert step_names(steps) == ["step-1", "orca", "step-3"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["a", "b", "a"], "sdpo.steps[2] and sdpo.steps[0] are both named 'a'", id="same"),
        pytest.param(["Orca", "orca"], "sdpo.steps[1] and sdpo.steps[0] are named 'orca' and 'Orca'", id="other-case"),
        pytest.param(["step-2", None], "sdpo.steps[1] and sdpo.steps[0] are both named 'step-2'", id="default"),
        pytest.param(
            [None, "Step-1"], "sdpo.steps[1] and sdpo.steps[0] are named 'Step-1' and 'step-1'", id="default-case"
        ),
    ],
)
def test_two_steps_of_one_name(names: list[str | None], message: str) -> None:
    block = {"steps": [step(name=name) for name in names]}
    assert refusal(block) == f"{message}; give each step a name of its own."


# --- pairs that exclude each other, overrides ---


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param(
            {"warmup_ratio": 0.1, "warmup_steps": 5},
            "sdpo.steps[0]: warmup_ratio: 0.1 and warmup_steps: 5 exclude each other; keep one.",
            id="warmup",
        ),
        pytest.param(
            {"val_set_size": 0.2, "test_datasets": [{"path": "t"}]},
            "sdpo.steps[0]: val_set_size: 0.2 and test_datasets: [{'path': 't'}] exclude each other; keep one.",
            id="held-out",
        ),
    ],
)
def test_exclusive_pair(keys: dict[str, Any], message: str) -> None:
    assert refusal({"steps": [step(**keys)]}) == message


@pytest.mark.parametrize(
    "keys",
    [{"warmup_ratio": 0.0, "warmup_steps": 5}, {"val_set_size": 0.0, "test_datasets": [{"path": "t"}]}],
    ids=["warmup", "held-out"],
)
def test_pair_of_which_one_is_zero_passes(keys: dict[str, Any]) -> None:
    assert parse_step(**keys).overrides() == keys


def test_overrides_are_the_keys_that_are_set() -> None:
    chosen = {"learning_rate": 1e-6, "warmup_steps": 0, "weight_decay": 0.0}
    assert parse_step(name="orca", **chosen).overrides() == chosen


def test_step_without_overrides() -> None:
    assert parse_step().overrides() == {}


@pytest.mark.parametrize("key", ["learning_rate", "num_epochs", "rl_beta", "weight_decay"])
def test_infinity_is_refused(key: str) -> None:
    assert refusal({"steps": [step(**{key: math.inf})]}) == (
        f"sdpo.steps[0].{key}: inf is not valid: Input should be a finite number."
    )


# --- partition ---


def parse_partition(**keys: Any) -> PartitionArgs:
    args = parse_block({"partition": keys}).partition
    assert args is not None
    return args


ROW = {"strategy": "easy_to_hard", "unit": "row"}


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "natural"},
        {"strategy": "easy_to_hard"},
        {"strategy": "easy_to_hard", "unit": "source", "score": "log_ratio_per_token"},
        {**ROW, "num_steps": 3},
        {**ROW, "fractions": [0.25, 0.75], "score": "log_ratio"},
        {"strategy": "random", "num_steps": 2},
        {"strategy": "random", "fractions": [0.1667, 0.8333], "seed": 0},
        {"strategy": "stratified", "num_steps": 5, "seed": 7},
        {"strategy": "stratified", "fractions": [1.0]},
        {"strategy": "natural", "max_rows": 100, "weights": [1.0, 0.5], "seed": 3},
        {"strategy": "easy_to_hard", "max_rows": 1, "seed": 3},
        {"strategy": "natural", "weights": [2.0], "seed": 3},
        {**ROW, "num_steps": 3, "pool": "cumulative", "drop_hardest": 0.1},
        {**ROW, "num_steps": 3, "pool": "disjoint"},
        {**ROW, "num_steps": 3, "column": "gap", "descending": False, "drop_hardest": 0.5},
        {"strategy": "easy_to_hard", "column": "gap"},
        {**ROW, "num_steps": 3, "rescore": True, "drop_hardest": 0.5, "pool": "disjoint"},
    ],
    ids=lambda keys: "-".join(str(value) for value in keys.values()),
)
def test_partition_that_is_taken(keys: dict[str, Any]) -> None:
    assert parse_partition(**keys).model_dump(exclude_none=True) == keys


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param(
            {"strategy": "natural", "unit": "row"},
            "sdpo.partition: unit: 'row' belongs to easy_to_hard, not to strategy: natural; remove unit.",
            id="unit-natural",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 2, "unit": "source"},
            "sdpo.partition: unit: 'source' belongs to easy_to_hard, not to strategy: random; remove unit.",
            id="unit-random",
        ),
        pytest.param(
            {"strategy": "stratified", "num_steps": 2, "score": "log_ratio"},
            "sdpo.partition: score: 'log_ratio' belongs to easy_to_hard, not to strategy: stratified; remove score.",
            id="score-stratified",
        ),
        pytest.param(
            {"strategy": "natural", "score": "log_ratio_per_token"},
            "sdpo.partition: score: 'log_ratio_per_token' belongs to easy_to_hard, not to strategy: natural; "
            "remove score.",
            id="score-natural",
        ),
        pytest.param(
            {"strategy": "natural", "seed": 0},
            "sdpo.partition: seed: 0 belongs to random, stratified, max_rows and weights, "
            "not to strategy: natural; remove seed.",
            id="seed-natural",
        ),
        pytest.param(
            {"strategy": "easy_to_hard", "seed": 1},
            "sdpo.partition: seed: 1 belongs to random, stratified, max_rows and weights, "
            "not to strategy: easy_to_hard by source; "
            "remove seed.",
            id="seed-by-source",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "seed": 1},
            "sdpo.partition: seed: 1 belongs to random, stratified, max_rows and weights, "
            "not to strategy: easy_to_hard; remove seed.",
            id="seed-by-row",
        ),
        pytest.param(
            {"strategy": "stratified", "num_steps": 2, "column": "gap"},
            "sdpo.partition: column: 'gap' belongs to easy_to_hard, not to strategy: stratified; remove column.",
            id="column-of-a-draw",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "descending": False},
            "sdpo.partition: descending: False belongs to column, not to strategy: easy_to_hard; remove descending.",
            id="descending-by-the-model",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "column": "gap", "score": "log_ratio"},
            "sdpo.partition: column: 'gap' and score: 'log_ratio' exclude each other: the order comes from the data or "
            "from the base model; keep one.",
            id="column-and-score",
        ),
        pytest.param(
            {"strategy": "easy_to_hard", "rescore": True},
            "sdpo.partition: rescore: True belongs to easy_to_hard by row, not to strategy: easy_to_hard by source; "
            "set unit: row, or remove it.",
            id="rescore-by-source",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "rescore": True, "column": "gap"},
            "sdpo.partition: rescore: True and column: 'gap' exclude each other: column gives the order, and rescore "
            "has the model before each step order what is left of the pool; keep one.",
            id="rescore-and-column",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "rescore": True, "pool": "cumulative"},
            "sdpo.partition: rescore: True and pool: 'cumulative' exclude each other: pool takes the rows of earlier "
            "steps again, and rescore has the model before each step order what is left of the pool; keep one.",
            id="rescore-and-cumulative",
        ),
        pytest.param(
            {"strategy": "easy_to_hard", "drop_hardest": 0.1},
            "sdpo.partition: drop_hardest: 0.1 belongs to easy_to_hard by row, not to strategy: easy_to_hard by "
            "source; set unit: row, or remove it.",
            id="drop-hardest-by-source",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 2, "pool": "cumulative"},
            "sdpo.partition: pool: 'cumulative' belongs to easy_to_hard by row, not to strategy: random; remove pool.",
            id="cumulative-at-random",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "drop_hardest": 1.0},
            "sdpo.partition.drop_hardest: 1.0 is not valid: Input should be less than 1.",
            id="drop-all",
        ),
        pytest.param(
            {"strategy": "natural", "num_steps": 2},
            "sdpo.partition: num_steps: 2 has no use with strategy: natural, where each source is a step; remove it.",
            id="num_steps-natural",
        ),
        pytest.param(
            {"strategy": "natural", "fractions": [0.5, 0.5]},
            "sdpo.partition: fractions: [0.5, 0.5] has no use with strategy: natural, where each source is a step; "
            "remove it.",
            id="fractions-natural",
        ),
        pytest.param(
            {"strategy": "easy_to_hard", "num_steps": 3},
            "sdpo.partition: num_steps: 3 has no use with strategy: easy_to_hard by source, where each source is a "
            "step; set unit: row, or remove it.",
            id="num_steps-by-source",
        ),
        pytest.param(
            {"strategy": "easy_to_hard", "unit": "source", "fractions": [1.0]},
            "sdpo.partition: fractions: [1.0] has no use with strategy: easy_to_hard by source, where each source is "
            "a step; set unit: row, or remove it.",
            id="fractions-by-source",
        ),
        pytest.param(
            {"strategy": "random"},
            "sdpo.partition: strategy: random needs num_steps or fractions: they are both missing; "
            "set one, e.g. num_steps: 2.",
            id="neither-random",
        ),
        pytest.param(
            ROW,
            "sdpo.partition: strategy: easy_to_hard needs num_steps or fractions: they are both missing; "
            "set one, e.g. num_steps: 2.",
            id="neither-by-row",
        ),
        pytest.param(
            {"strategy": "stratified", "num_steps": 2, "fractions": [0.5, 0.5]},
            "sdpo.partition: strategy: stratified needs num_steps or fractions: num_steps: 2 and fractions: [0.5, 0.5] "
            "are both set; keep one.",
            id="both-stratified",
        ),
        pytest.param(
            {**ROW, "num_steps": 2, "fractions": [0.5, 0.5]},
            "sdpo.partition: strategy: easy_to_hard needs num_steps or fractions: num_steps: 2 and "
            "fractions: [0.5, 0.5] are both set; keep one.",
            id="both-by-row",
        ),
        pytest.param(
            {"strategy": "random", "fractions": [0.5, 0.4]},
            "sdpo.partition.fractions: [0.5, 0.4] sum to 0.9, not to 1; set shares that do.",
            id="fractions-below-1",
        ),
        pytest.param(
            {"strategy": "random", "fractions": [0.6, 0.5, 0.2]},
            "sdpo.partition.fractions: [0.6, 0.5, 0.2] sum to 1.3, not to 1; set shares that do.",
            id="fractions-above-1",
        ),
        pytest.param(
            {"strategy": "random", "fractions": [0.5, 0.502]},
            "sdpo.partition.fractions: [0.5, 0.502] sum to 1.002, not to 1; set shares that do.",
            id="fractions-not-by-rounding",
        ),
        pytest.param(
            {"strategy": "random", "fractions": []},
            "sdpo.partition.fractions: [] is not valid: List should have at least 1 item after validation, not 0.",
            id="no-fractions",
        ),
        pytest.param(
            {"strategy": "random", "fractions": [1.0, 0.0]},
            "sdpo.partition.fractions[1]: 0.0 is not valid: Input should be greater than 0.",
            id="fraction-of-0",
        ),
        pytest.param(
            {"strategy": "random", "fractions": [1.5, -0.5]},
            "sdpo.partition.fractions[0]: 1.5 is not valid: Input should be less than or equal to 1.\n"
            "sdpo.partition.fractions[1]: -0.5 is not valid: Input should be greater than 0.",
            id="fractions-outside",
        ),
        pytest.param(
            {"strategy": "random", "fractions": 0.5},
            "sdpo.partition.fractions: 0.5 is not valid: Input should be a valid list.",
            id="fraction-alone",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 0},
            "sdpo.partition.num_steps: 0 is not valid: Input should be greater than or equal to 1.",
            id="no-steps",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 2.5},
            "sdpo.partition.num_steps: 2.5 is not valid: "
            "Input should be a valid integer, got a number with a fractional part.",
            id="half-a-step",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 2, "seed": -1},
            "sdpo.partition.seed: -1 is not valid: Input should be greater than or equal to 0.",
            id="seed-that-numpy-refuses",
        ),
        pytest.param(
            {"strategy": "random", "num_steps": 10**12},
            "sdpo.partition.num_steps: 1000000000000 is not valid: Input should be less than or equal to 1000.",
            id="more-steps-than-memory-for-their-shares",
        ),
        pytest.param(
            {"strategy": "hard_to_easy"},
            "sdpo.partition.strategy: 'hard_to_easy' is not valid: "
            "Input should be 'natural', 'easy_to_hard', 'random' or 'stratified'.",
            id="strategy",
        ),
        pytest.param(
            {**ROW, "unit": "token", "num_steps": 2},
            "sdpo.partition.unit: 'token' is not valid: Input should be 'source' or 'row'.",
            id="unit",
        ),
        pytest.param(
            {**ROW, "score": "loss", "num_steps": 2},
            "sdpo.partition.score: 'loss' is not valid: Input should be 'log_ratio' or 'log_ratio_per_token'.",
            id="score",
        ),
        pytest.param(
            {},
            "sdpo.partition.strategy is missing; set it to natural, easy_to_hard, random or stratified.",
            id="no-strategy",
        ),
        pytest.param(
            {"strategy": "random", "num_step": 2},
            "sdpo.partition.num_step: 2 is set, but there is no such key; did you mean 'num_steps'? "
            f"Keys here: {', '.join(PARTITION_KEYS)}.",
            id="unknown-key",
        ),
        pytest.param(
            {"strategy": "natural", "startegy": "random"},
            "sdpo.partition.startegy: 'random' is set, but there is no such key; did you mean 'strategy'? "
            f"Keys here: {', '.join(PARTITION_KEYS)}.",
            id="key-misspelt",
        ),
        pytest.param(
            {"strategy": "natural", "reference": "base"},
            "sdpo.partition.reference: 'base' is set, but there is no such key; "
            f"Keys here: {', '.join(PARTITION_KEYS)}.",
            id="key-of-the-block",
        ),
    ],
)
def test_partition_that_is_refused(keys: dict[str, Any], message: str) -> None:
    assert refusal({"partition": keys}) == message


class AnswersAnything(dict[str, Any]):
    """Like the host's own dict, which answers any attribute with None."""

    def __getattr__(self, name: str) -> None:
        return None


def test_nested_blocks_of_the_host_can_be_written_again() -> None:
    """An entry with a `type:` of its own fields, which pydantic would take for a model without a serializer."""
    entry = {"path": "pairs.jsonl", "type": {"field_prompt": "q"}, "splits": [{"name": "train"}]}
    hosts = AnswersAnything(
        {**entry, "type": AnswersAnything(entry["type"]), "splits": [AnswersAnything(name="train")]}
    )
    block = parse_block({"steps": [{"datasets": [hosts]}]})
    assert block.model_dump(exclude_none=True)["steps"] == [{"datasets": [entry]}]


def test_partition_written_as_its_strategy_is_refused() -> None:
    assert refusal({"partition": "random"}).startswith("sdpo.partition: 'random' is not valid: ")


def test_partition_and_steps_exclude_each_other() -> None:
    assert refusal({"partition": {"strategy": "natural"}, "steps": [step(), step()]}) == (
        "sdpo.partition (strategy: natural) and sdpo.steps (2 steps) are both set; keep sdpo.steps, or put all data "
        "under datasets: and keep sdpo.partition."
    )


@pytest.mark.parametrize(
    ("keys", "shares"),
    [
        pytest.param({"num_steps": 4}, [0.25, 0.25, 0.25, 0.25], id="num_steps"),
        pytest.param({"num_steps": 1}, [1.0], id="one-step"),
        pytest.param({"fractions": [0.1667, 0.8333]}, [0.1667, 0.8333], id="paper"),
        # three thirds written short sum to 0.999: each becomes 0.333/0.999
        pytest.param({"fractions": [0.333, 0.333, 0.333]}, [1 / 3, 1 / 3, 1 / 3], id="thirds-written-short"),
        pytest.param({"fractions": [0.5005, 0.5005]}, [0.5, 0.5], id="a-little-too-much"),
    ],
)
def test_shares_sum_to_1(keys: dict[str, Any], shares: list[float]) -> None:
    found = parse_partition(strategy="random", **keys).shares()
    assert found == pytest.approx(shares, rel=1e-12)
    assert sum(found) == pytest.approx(1.0, abs=1e-15)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_shares_as_anyone_may_write_them_cut_any_pool(parts: list[int]) -> None:
    """Rounded to ten places, they sum to 1 well enough for sizes that sum to the pool."""
    written = [round(part / sum(parts), 10) for part in parts]
    assume(min(written) > 0)
    num_rows = 10**9
    assert sum(step_sizes(num_rows, parse_partition(strategy="random", fractions=written).shares())) == num_rows


# --- reference and start ---


@pytest.mark.parametrize("reference", ["previous", "base", "org/model", "./out/model", "/models/a b"])
def test_reference_is_a_word_or_any_path(reference: str) -> None:
    assert parse_block({"reference": reference}).reference == reference


@pytest.mark.parametrize("packed", ["auto", True, False])
def test_packed(packed: bool | str) -> None:
    assert parse_block({"packed": packed}).packed is packed


@pytest.mark.parametrize("check_data", ["error", "warn", False])
def test_check_data(check_data: bool | str) -> None:
    """A YAML file's `off` and `no` are false."""
    assert parse_block({"check_data": check_data}).check_data is check_data


@pytest.mark.parametrize("check_data", ["off", True, None, 0.5])
def test_check_data_is_one_of_three(check_data: object) -> None:
    with pytest.raises(
        ConfigError, match=r"sdpo\.check_data: .* is not valid: Input should be 'error', 'warn' or False"
    ):
        parse_block({"check_data": check_data})


@pytest.mark.parametrize("packed", ["yes", 1.5, None, []])
def test_packed_is_auto_or_a_switch(packed: object) -> None:
    with pytest.raises(ConfigError, match=r"sdpo\.packed: .* is not valid: Input should be 'auto', True or False"):
        parse_block({"packed": packed})


@pytest.mark.parametrize("policy_init", ["previous", "base"])
def test_start_of_the_policy(policy_init: str) -> None:
    assert parse_block({"policy_init": policy_init}).policy_init == policy_init


# --- a reference that moves ---


@pytest.mark.parametrize(
    ("refresh", "message"),
    [
        ({}, "sdpo.reference_refresh: neither every nor kl_above is set; set exactly one: every: N (updates)"),
        ({"every": 5, "kl_above": 0.5}, "sdpo.reference_refresh: every: 5 and kl_above: 0.5 are both set; set exactly"),
        ({"every": 0}, "sdpo.reference_refresh.every: 0 is not valid: Input should be greater than or equal to 1."),
        ({"every": 1.5}, "sdpo.reference_refresh.every: 1.5 is not valid: "),
        ({"kl_above": 0}, "sdpo.reference_refresh.kl_above: 0 is not valid: Input should be greater than 0."),
        ({"evry": 5}, "sdpo.reference_refresh.evry: 5 is set, but there is no such key; did you mean 'every'? Keys "),
        (64, "sdpo.reference_refresh: 64 is not valid: "),
    ],
)
def test_a_refresh_that_says_nothing_or_too_much(refresh: Any, message: str) -> None:
    assert any(line.startswith(message) for line in refusal({"reference_refresh": refresh}).splitlines())


@pytest.mark.parametrize("reference", ["base", "org/model"])
@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"reference_refresh": {"every": 5}}, "sdpo.reference_refresh"),
        ({"steps": [step(), step(reference_refresh={"kl_above": 1})]}, "sdpo.steps[1].reference_refresh"),
    ],
    ids=["block", "step"],
)
def test_a_reference_of_its_own_cannot_move(reference: str, block: dict[str, Any], key: str) -> None:
    assert refusal({"reference": reference, **block}) == (
        f"sdpo.reference: {reference!r} and {key} exclude each other: after a refresh the reference would be the "
        "policy, and no longer that model; set reference: previous, or remove reference_refresh."
    )


def test_a_step_moves_its_reference_in_its_own_way() -> None:
    block = parse_block(
        {
            "policy_init": "base",
            "reference_refresh": {"every": 5},
            "steps": [step(), step(reference_refresh={"kl_above": 1})],
        }
    )
    assert [block.refresh_of(index) for index in (1, 2)] == [RefreshArgs(every=5), RefreshArgs(kl_above=1)]
    assert parse_block({"reference_refresh": {"every": 5}}).refresh_of(7) == RefreshArgs(every=5)
    assert parse_block({}).refresh_of(1) is None


def test_ranking_again_excludes_another_reference() -> None:
    block = {"partition": {**ROW, "num_steps": 2, "rescore": True}}
    assert parse_block({**block, "reference": "previous"}).reference == "previous"
    assert refusal({**block, "reference": "base"}) == (
        "sdpo.reference: 'base' and sdpo.partition.rescore: True exclude each other: the log-probs of such a reference "
        "are computed before step 1, when it is not known which rows a step will have; set reference: previous."
    )
