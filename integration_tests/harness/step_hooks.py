"""Hooks that the configs of tests name: rows by the shipped example, a note of each call, and what can go wrong.

`SDPO_TEST_HOOK=KIND:HOOK:STEP` lets one call go wrong: `raise` an error, write rows that `spoil` the step, `exit`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sdpo_plugin
from example_configs import self_play

PROMPTS, MAX_NEW_TOKENS = 12, 8


def before(context: sdpo_plugin.StepContext) -> None:
    """The example's `make_pairs`, over few and short rows."""
    _note("before_step", context)
    self_play.PROMPTS, self_play.MAX_NEW_TOKENS = PROMPTS, MAX_NEW_TOKENS
    if _goes_wrong("spoil", "before_step", context):
        assert context.data_path is not None
        context.data_path.write_text('{"chosen": "no list of messages"}\n', encoding="utf-8")
        return
    self_play.make_pairs(context)


def after(context: sdpo_plugin.StepContext) -> None:
    """Loads M_t, as a user's own evaluation would."""
    from transformers import AutoModelForCausalLM

    _note("after_step", context)
    model = AutoModelForCausalLM.from_pretrained(context.model_dir)
    assert all(parameter.numel() for parameter in model.parameters())
    self_play.tell(context)
    if _goes_wrong("raise", "after_step", context):
        raise KeyError("a fault of the test")
    if _goes_wrong("exit", "after_step", context):
        sys.exit(0)


def none() -> None:
    """Takes no argument, and so is no hook."""


def calls(out: Path) -> list[dict[str, Any]]:
    """What the hooks of a run were given, call by call."""
    return [json.loads(line) for line in (out.parent / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


def _note(hook: str, context: sdpo_plugin.StepContext) -> None:
    given = {
        "hook": hook,
        "rank": os.environ.get("RANK") or "0",
        "step": asdict(context.step),
        "record": asdict(context.record),
        "base_model": context.plan.base_model,
        "model_dir": context.model_dir,
        "seed": context.seed,
        "states": [step["state"] for step in context.report["steps"]],
        "data_path": None if context.data_path is None else str(context.data_path),
    }
    with (context.output_dir.parent / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(given) + "\n")


def _goes_wrong(kind: str, hook: str, context: sdpo_plugin.StepContext) -> bool:
    return os.environ.get("SDPO_TEST_HOOK") == f"{kind}:{hook}:{context.step.index}"
