"""The identity of a run, as facts that can be compared when it is resumed: models, tokenizer, rows, config.

Nothing here needs a model, so that a run that is finished can be compared too, without loading one.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sdpo_plugin import digests
from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.heldout import heldout_cfgs
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.data.rated import RATING, TEXTS
from sdpo_plugin.host.data.read_errors import source_name
from sdpo_plugin.host.data.step_limits import deepspeed_config
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.engines.tokenizer import tokenizer_of
from sdpo_plugin.host.starting_adapter import facts_of_adapter
from sdpo_plugin.plan import Plan
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.run_dir.drift import (
    VERSIONS,
    changes,
    require_same_run,
    require_same_step,
    require_same_steps,
    run_settings,
    step_settings,
    without_secrets,
)
from sdpo_plugin.run_dir.growth import Wanted
from sdpo_plugin.run_dir.ledger import Ledger

MODEL = "content of the model"
PACKAGES = ("axolotl", "trl", "transformers", "accelerate", "deepspeed", "peft", "torch", "datasets")
WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def identity_of(cfg: DictDefault, block: SDPOConfig, sources: Sequence[LoadedSource]) -> dict[str, dict[str, Any]]:
    """Facts by section; what differs is named by section and key. Every rank calls; rank 0 finds them.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        sources: data of each entry of `datasets:`, or of each of `sdpo.steps`, as the host has prepared them.
    """
    tokenizer = tokenizer_of(cfg)
    return on_rank_0(lambda: _facts(cfg, block, tokenizer, sources))


def _facts(
    cfg: DictDefault, block: SDPOConfig, tokenizer: PreTrainedTokenizerBase, sources: Sequence[LoadedSource]
) -> dict[str, dict[str, Any]]:
    """By section; causes come before what they cause."""
    heldout = {name: rows for source in sources for name, rows in source.heldout.items()}
    cfgs, template = heldout_cfgs(sources), tokenizer.chat_template
    return {
        "base_model": base_model_of(cfg),
        "tokenizer": {
            "vocabulary": digests.of_json(sorted(tokenizer.get_vocab().items())),
            "special tokens": digests.of_json({key: str(value) for key, value in tokenizer.special_tokens_map.items()}),
            "chat template": digests.of_json(template),
        },
        "sdpo": _block(block),
        "config": run_settings(plain(cfg)),
        "rows": {
            f"source {number}": rows_of(source.train) | measured_by(source.cfg, cfg)
            for number, source in enumerate(sources, 1)
            if not source.is_awaited  # known when they are made
        },
        "held-out rows": {name: rows_of(rows) | measured_by(cfgs[name], cfg) for name, rows in heldout.items()},
        VERSIONS: {package: version(package) for package in PACKAGES},
    }


def wanted_run(plan: Plan, identity: Mapping[str, Mapping[str, Any]], sources: Sequence[LoadedSource]) -> Wanted:
    """The run that the config asks for, which may be one that is there and grows."""
    return Wanted(plan, identity, [list(source.heldout) for source in sources])


def require_same(
    ledger: Ledger,
    identity: Mapping[str, Mapping[str, Any]],
    block: SDPOConfig,
    sources: Sequence[LoadedSource],
) -> list[str]:
    """Refuse to resume with another identity than the run began with, or finished steps with other settings.

    The settings of the step under way are compared when it is known how its batches are shared out.

    Args:
        ledger: of the run.
        identity: of the run as it would be resumed.
        block: the `sdpo:` block.
        sources: as in ``identity_of``.

    Returns:
        A line on each version of a package that has changed, which is no reason to lose a run.

    Raises:
        ConfigError: it names everything else that has changed.
    """
    if block.partition is None:
        require_same_steps([step.name for step in ledger.plan.steps], [source.name for source in sources])
    require_same_run(ledger.identity, identity, source_names(sources))
    for number, (step, record) in enumerate(ledger.steps):
        if record.state != "exported":
            break
        cfg = sources[number % len(sources)].cfg  # the steps of a partition share theirs
        now = settings_of(cfg, 1, block.refresh_of(step.index))
        require_same_step(step.name, record.settings, now, from_checkpoint=False)
    return changes(ledger.identity[VERSIONS], identity[VERSIONS])


def base_model_of(cfg: DictDefault) -> dict[str, Any]:
    """The facts of M_0: what it holds, and not where it lies."""
    files = model_files(str(cfg.base_model), cfg.revision_of_model)
    return {MODEL: digests.of_samples(files), **facts_of_adapter(cfg)}


def source_names(sources: Sequence[LoadedSource]) -> dict[str, str]:
    """The names of the sources by the keys of their facts: files may be moved, and a message has to name them."""
    return {
        f"source {number}": ", ".join(source_name(entry) for entry in source.cfg.datasets)
        for number, source in enumerate(sources, 1)
    }


def rows_of(dataset: Dataset) -> dict[str, Any]:
    """The number of rows, and a digest of their texts in order, with the numbers that rate them."""
    batches = dataset.select_columns([name for name in (*TEXTS, RATING) if name in dataset.column_names]).iter(1000)
    return {"rows": len(dataset), "digest": digests.of_chunks(map(digests.canonical_json, batches))}


def measured_by(cfg: DictDefault, run: DictDefault) -> dict[str, Any]:
    """What a step sets for itself that its log-probs depend on: no table of them holds for another value."""
    own = {"sequence_len": cfg.sequence_len if cfg.sequence_len != run.sequence_len else None}
    own["dpo_ld_alpha"] = cfg.dpo_ld_alpha
    return {key: value for key, value in own.items() if value is not None}


def settings_of(cfg: DictDefault, world_size: int, refresh: RefreshArgs | None = None) -> dict[str, Any]:
    """The hyper-parameters of a step.

    Args:
        cfg: the config of that step alone.
        world_size: number of ranks.
        refresh: its `reference_refresh`.
    """
    settings = step_settings({**plain(cfg), "world_size": world_size, "deepspeed": deepspeed_config(cfg)})
    return settings if refresh is None else {**settings, "reference_refresh": refresh.model_dump(exclude_none=True)}


def plain(cfg: DictDefault) -> dict[str, Any]:
    """The config as JSON values."""
    value: dict[str, Any] = json.loads(json.dumps(cfg.to_dict(), default=str))
    return value


def _block(block: SDPOConfig) -> dict[str, Any]:
    """The part of the block that holds for every step; overrides are compared by step, and `export_steps` is free."""
    facts: dict[str, Any] = block.model_dump(include={"partition", "policy_init", "reference"}, exclude_none=True)
    return dict(without_secrets(facts))


def model_files(model: str, revision: str | None, patterns: Sequence[str] = WEIGHTS) -> list[Path]:
    """The files of a model, in its directory or in the cache of the hub."""
    directory = Path(model)
    if not directory.is_dir():
        directory = Path(cached_file(model, "config.json", revision=revision)).parent
    return [path for pattern in patterns for path in directory.glob(pattern)]
