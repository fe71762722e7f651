"""What a run is made of, as facts that can be compared when it goes on: models, tokenizer, rows, config."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.drift import VERSIONS, run_settings, step_settings, without_secrets
from sdpo_plugin.files import fingerprint, sampled_digest
from sdpo_plugin.host.datasets import StepData, row_facts

PACKAGES = ("axolotl", "trl", "transformers", "accelerate", "deepspeed", "peft", "torch", "datasets")
WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def identity_of(
    cfg: DictDefault,
    block: SDPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[StepData],
    heldout: Mapping[str, Dataset],
) -> dict[str, dict[str, Any]]:
    """Facts by section; what differs is named by section and key. Causes come before what they cause."""
    template = tokenizer.chat_template
    return {
        "base_model": {"content of the model": sampled_digest(_files(cfg))},
        "tokenizer": {
            "vocabulary": fingerprint(sorted(tokenizer.get_vocab().items())),
            "special tokens": fingerprint({key: str(value) for key, value in tokenizer.special_tokens_map.items()}),
            "chat template": fingerprint(template),
        },
        "sdpo": _block(block),
        "config": run_settings(plain(cfg)),
        "rows": {
            f"source {number}": source.facts.digest()  # not by its name: files may be moved
            for number, source in enumerate(sources, 1)
            if source.facts is not None
        },
        "held-out rows": {name: row_facts(rows).digest() for name, rows in heldout.items()},
        VERSIONS: {package: version(package) for package in PACKAGES},
    }


def settings_of(cfg: DictDefault, world_size: int) -> dict[str, Any]:
    """The hyper-parameters of a step.

    Args:
        cfg: the config of that step alone.
        world_size: number of ranks.
    """
    return step_settings({**plain(cfg), "world_size": world_size, "deepspeed": _deepspeed(cfg)})


def plain(cfg: DictDefault) -> dict[str, Any]:
    """The config as JSON values."""
    value: dict[str, Any] = json.loads(json.dumps(cfg.to_dict(), default=str))
    return value


def _deepspeed(cfg: DictDefault) -> Any:
    """The content of the DeepSpeed config, wherever it lies."""
    if isinstance(cfg.deepspeed, str) and Path(cfg.deepspeed).is_file():
        return json.loads(Path(cfg.deepspeed).read_bytes())
    return cfg.deepspeed


def _block(block: SDPOConfig) -> dict[str, Any]:
    """What every step is made by; overrides of a step are compared with the step, and `export_steps` is free."""
    facts: dict[str, Any] = block.model_dump(include={"partition", "policy_init", "reference"}, exclude_none=True)
    return dict(without_secrets(facts))


def _files(cfg: DictDefault) -> list[Path]:
    """The files of the base model, in its directory or in the cache of the hub."""
    directory = Path(cfg.base_model)
    if not directory.is_dir():
        config = cached_file(str(cfg.base_model), "config.json", revision=cfg.revision_of_model)
        directory = Path(config).parent
    return [path for pattern in WEIGHTS for path in directory.glob(pattern)]
