"""Misspelt names, which the host would drop, skip or end over, each with the one that was meant."""

from collections.abc import Container, Mapping
from typing import Any

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.recognition import BLOCK, RL, is_nearly_sdpo
from sdpo_plugin.text import is_close, plain

OWNERS = {name: f"{BLOCK}.partition.{name}" for name in PartitionArgs.model_fields} | {
    name: f"{BLOCK}.{name}" for name in SDPOConfig.model_fields
}
"""Where each key of the block belongs. What a step sets are the host's own keys, and a `name` may be anyone's."""

_SHOWN = 200  # characters of a value: a block of data sets may be long


def require_known_rl(rl: Any, known: Container[str]) -> None:
    """Refuse what is nearly `rl: sdpo`, and no value of the host's.

    Raises:
        ConfigError: it names the value and the right one.
    """
    if is_nearly_sdpo(rl, known):
        raise ConfigError(f"rl: {rl!r} is no value that the host knows; did you mean rl: {RL}? Set that instead.")


def require_known_keys(cfg: Mapping[Any, Any], known: Container[str]) -> None:
    """Refuse keys of the block at the top level, and a block under a name that is nearly its own.

    The host drops keys that it does not know without a word, and would train something else.

    Args:
        cfg: the whole config.
        known: the keys of the host and of all its plugins; what they mean by a name is theirs to say.

    Raises:
        ConfigError: a line for each, with the value and where it belongs.
    """
    unknown = [key for key in cfg if isinstance(key, str) and key != BLOCK and key not in known]
    lines = []
    for key in unknown:
        name, value = plain(key), cfg[key]
        if name in OWNERS:
            where, remedy = OWNERS[name], "move it there, or remove it"
        elif _means_block(name, value):
            where, remedy = f"{BLOCK}:", f"rename it to {BLOCK}, or remove it"
        else:
            continue
        lines.append(
            f"{key}: {repr(value)[:_SHOWN]} stands at the top level of the config, where the host knows no such key "
            f"and drops it; did you mean {where}? {remedy.capitalize()}."
        )
    if lines:
        raise ConfigError("\n".join(lines))


def _means_block(name: str, value: Any) -> bool:
    """A switch, such as `sdpa: true`, is no block, and FSDP is a word of its own."""
    return not isinstance(value, bool) and name != "fsdp" and (name.startswith(BLOCK) or is_close(name, BLOCK))
