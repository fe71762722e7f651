"""The `sdpo:` block as a user has written it: read, or refused in words."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sdpo_plugin.args import DiagnosticsArgs, SDPOConfig
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.lm_eval_args import LMEvalArgs, TaskArgs
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.steps_args import HookRows, StepArgs


def parse_block(block: Mapping[str, Any] | None) -> SDPOConfig:
    """The `sdpo:` block as written in the config.

    Raises:
        ConfigError: it has an unknown key or a wrong value; the message names the key, the value and the remedy.
    """
    if block is not None and not isinstance(block, Mapping):
        raise ConfigError(f"sdpo: is {block!r}, but a block of keys is expected; keys: {_known_keys(())}")
    try:
        return SDPOConfig.model_validate(_plain(block or {}))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(dict(item)) for item in error.errors())) from None


def _plain(value: Any) -> Any:
    """Dicts and lists only: the host's own kind of dict answers any attribute, and pydantic takes it for a model."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _known_keys(location: Sequence[int | str]) -> list[str]:
    nested: dict[int | str, type[BaseModel]] = {
        "steps": StepArgs,
        "partition": PartitionArgs,
        "lm_eval": LMEvalArgs,
        "diagnostics": DiagnosticsArgs,
    }
    model = nested.get(location[0], SDPOConfig) if len(location) > 1 else SDPOConfig
    if model is LMEvalArgs and len(location) > 2 and location[1] == "tasks":
        model = TaskArgs
    if "from_hook" in location[:-1]:
        model = HookRows
    if "reference_refresh" in location[:-1]:
        model = RefreshArgs
    return list(model.model_fields)


def _explain(item: dict[str, Any]) -> str:
    location = list(item["loc"])
    path = "sdpo" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{path}: {item['input']!r} is set, but there is no such key; {hint}Keys here: {', '.join(known)}."
    if item["type"] == "value_error":
        prefix = "" if path == "sdpo" else f"{path}: "
        return f"{prefix}{item['ctx']['error']}."
    if item["type"] == "missing":
        remedy = "a value, e.g. a list of host dataset entries"
        if location[-1] == "strategy":
            remedy = "natural, easy_to_hard, random or stratified"
        elif location[0] == "lm_eval":
            remedy = "names of tasks of lm-eval, e.g. [arc_challenge, hellaswag]"
        if location[-2:] == ["from_hook", "type"]:
            remedy = "the host's type of these rows, e.g. chat_template.default"
        return f"{path} is missing; set it to {remedy}."
    if item["type"] == "model_type":
        keys = ", ".join(_known_keys([*location, ""]))
        return f"{path}: {item['input']!r} is not valid: a block of keys is expected; keys: {keys}."
    return f"{path}: {item['input']!r} is not valid: {item['msg']}."
