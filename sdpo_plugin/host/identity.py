"""What a run is made of, as facts that can be compared when it is resumed: models, tokenizer, rows, config.

Nothing here needs a model, so that a run that is finished can be compared too, without loading one.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.drift import VERSIONS, run_settings, step_settings, without_secrets
from sdpo_plugin.files import canonical_json, fingerprint, sampled_digest
from sdpo_plugin.host.datasets import StepData, source_name

PACKAGES = ("axolotl", "trl", "transformers", "accelerate", "deepspeed", "peft", "torch", "datasets")
WEIGHTS = ("*.safetensors", "*.bin", "config.json")
TEXTS = ("prompt", "chosen", "rejected")  # the columns that the host prepares


def identity_of(
    cfg: DictDefault,
    block: SDPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[StepData],
) -> dict[str, dict[str, Any]]:
    """Facts by section; what differs is named by section and key. Causes come before what they cause.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        tokenizer: of the policy.
        sources: data of each entry of `datasets:`, or of each of `sdpo.steps`, as the host has prepared them.
    """
    heldout = {name: rows for source in sources for name, rows in source.heldout.items()}
    template = tokenizer.chat_template
    return {
        "base_model": base_model_of(cfg),
        "tokenizer": {
            "vocabulary": fingerprint(sorted(tokenizer.get_vocab().items())),
            "special tokens": fingerprint({key: str(value) for key, value in tokenizer.special_tokens_map.items()}),
            "chat template": fingerprint(template),
        },
        "sdpo": _block(block),
        "config": run_settings(plain(cfg)),
        "rows": {f"source {number}": rows_of(source.train) for number, source in enumerate(sources, 1)},
        "held-out rows": {name: rows_of(rows) for name, rows in heldout.items()},
        VERSIONS: {package: version(package) for package in PACKAGES},
    }


def base_model_of(cfg: DictDefault) -> dict[str, Any]:
    """The facts of M_0: what it holds, and not where it lies."""
    return {"content of the model": sampled_digest(_files(cfg))}


def source_names(sources: Sequence[StepData]) -> dict[str, str]:
    """Where the rows lie, by the keys of their facts: files may be moved, and a message has to name them."""
    return {
        f"source {number}": ", ".join(source_name(entry) for entry in source.cfg.datasets)
        for number, source in enumerate(sources, 1)
    }


def rows_of(dataset: Dataset) -> dict[str, Any]:
    """How many rows, and a digest of their texts in order: XXH3 of 128 bits."""
    digest = xxhash.xxh3_128()
    for batch in dataset.select_columns(list(TEXTS)).iter(1000):
        digest.update(canonical_json(batch))
    return {"rows": len(dataset), "digest": digest.hexdigest()}


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
