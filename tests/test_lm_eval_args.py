"""`sdpo.lm_eval`: its keys, what is refused, and what holds for each entry."""

import re
from typing import Any

import pytest

from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.lm_eval_args import LMEvalArgs, TaskArgs


def parse(**keys: Any) -> LMEvalArgs:
    args = parse_block({"lm_eval": {"tasks": ["hellaswag"], **keys}}).lm_eval
    assert args is not None
    return args


def refusal(block: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_block({"lm_eval": block})
    return str(caught.value)


def test_option_lists_are_frozen() -> None:
    assert list(LMEvalArgs.model_fields) == [
        *("tasks", "limit", "num_fewshot", "include_path", "apply_chat_template", "batch_size", "steps")
    ]
    assert list(TaskArgs.model_fields) == ["task", "num_fewshot", "limit"]


@pytest.mark.parametrize("model", [LMEvalArgs, TaskArgs])
def test_every_option_is_described(model: type[LMEvalArgs] | type[TaskArgs]) -> None:
    for name, field in model.model_fields.items():
        assert re.fullmatch(r".{20,}[.…]", field.description or ""), name


def test_defaults() -> None:
    assert parse().model_dump() == {
        "tasks": [{"task": "hellaswag", "num_fewshot": None, "limit": None}],
        "limit": None,
        "num_fewshot": None,
        "include_path": None,
        "apply_chat_template": False,
        "batch_size": 8,
        "steps": "all",
    }


def test_entry_has_its_own_settings_or_those_of_the_block() -> None:
    """0 worked examples are a setting too."""
    args = parse(
        tasks=[
            "mmlu",
            {"task": "arc_challenge", "num_fewshot": 25},
            {"task": "eq_bench", "num_fewshot": 0, "limit": 7},
        ],
        num_fewshot=5,
        limit=100,
    )
    assert [(entry.task, entry.num_fewshot, entry.limit) for entry in args.entries] == [
        ("mmlu", 5, 100),
        ("arc_challenge", 25, 100),
        ("eq_bench", 0, 7),
    ]


def test_block_is_read_again_as_it_was_read() -> None:
    """The host hands it back as it was validated."""
    args = parse(tasks=["mmlu", {"task": "arc_challenge", "num_fewshot": 25}], limit=0.1)
    assert parse_block({"lm_eval": args.model_dump(exclude_none=True)}).lm_eval == args


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "sdpo.lm_eval.tasks is missing; set it to names of tasks of lm-eval, e.g. [arc_challenge, hellaswag]."),
        (
            {"tasks": []},
            "sdpo.lm_eval.tasks: [] is not valid: List should have at least 1 item after validation, not 0.",
        ),
        ({"tasks": "mmlu"}, "sdpo.lm_eval.tasks: 'mmlu' is not valid: Input should be a valid list."),
        ({"tasks": ["mmlu", {"task": "mmlu"}]}, "sdpo.lm_eval.tasks: 'mmlu' is listed 2 times; list each task once."),
        (
            {"tasks": [{"task": "mmlu", "fewshot": 5}]},
            "sdpo.lm_eval.tasks[0].fewshot: 5 is set, but there is no such key; did you mean 'num_fewshot'? "
            "Keys here: task, num_fewshot, limit.",
        ),
        (
            {"tasks": ["mmlu"], "numfewshot": 5},
            "sdpo.lm_eval.numfewshot: 5 is set, but there is no such key; did you mean 'num_fewshot'? Keys here: "
            "tasks, limit, num_fewshot, include_path, apply_chat_template, batch_size, steps.",
        ),
        (
            {"tasks": ["mmlu"], "limit": 1.5},
            "sdpo.lm_eval.limit: 1.5 is no number of questions; set a whole number, or a share below 1.",
        ),
        ({"tasks": ["mmlu"], "limit": 0}, "sdpo.lm_eval.limit: 0 is not valid: Input should be greater than 0."),
        (
            {"tasks": ["mmlu"], "num_fewshot": -1},
            "sdpo.lm_eval.num_fewshot: -1 is not valid: Input should be greater than or equal to 0.",
        ),
        (
            {"tasks": ["mmlu"], "batch_size": "auto"},
            "sdpo.lm_eval.batch_size: 'auto' is not valid: Input should be a valid integer, unable to parse string as "
            "an integer.",
        ),
        (
            {"tasks": ["mmlu"], "steps": "first"},
            "sdpo.lm_eval.steps: 'first' is not valid: Input should be 'all' or 'last'.",
        ),
    ],
)
def test_what_is_refused(block: dict[str, Any], message: str) -> None:
    assert refusal(block) == message
