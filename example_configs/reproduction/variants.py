"""The variants that are compared, as configs of the host. Pure functions: no host, no files."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from example_configs.reproduction.ranking import SOURCES

NATURAL = tuple(source.name for source in SOURCES)
BATCH = 32
EASY_TO_HARD = {"strategy": "easy_to_hard", "unit": "source"}


@dataclass(frozen=True)
class Settings:
    """What all variants share."""

    learning_rate: float
    num_epochs: int
    beta: float = 0.1


@dataclass(frozen=True)
class Variant:
    """One way to train on the pool; `block` is its `sdpo:` block, None for plain DPO."""

    name: str
    block: Mapping[str, Any] | None
    order: str = "natural"  # of the entries in `datasets:`: natural, reversed, hard_to_easy
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _partition(strategy: str, num_steps: int, **keys: Any) -> dict[str, Any]:
    return {"partition": {"strategy": strategy, "num_steps": num_steps, **keys}}


VARIANTS = (
    Variant("plain DPO on all data", None),
    Variant("by source, natural order (as listed)", {}),
    Variant("by source, reversed order", {}, order="reversed"),
    Variant("by source, easy to hard", {"partition": EASY_TO_HARD}),
    Variant("by source, hard to easy", {}, order="hard_to_easy"),
    Variant("stratified split, T = 4", _partition("stratified", 4)),
    *(Variant(f"random split, T = {number}", _partition("random", number)) for number in (2, 3, 4, 5)),
    *(Variant(f"easy to hard by row, T = {n}", _partition("easy_to_hard", n, unit="row")) for n in (2, 3, 4, 5)),
    Variant("by source, easy to hard, `reference: base`", {"partition": EASY_TO_HARD, "reference": "base"}),
    Variant("by source, easy to hard, `policy_init: base`", {"partition": EASY_TO_HARD, "policy_init": "base"}),
    # Not in the paper. A reference that moves lets the model move on: is that all there is to it?
    Variant("random split, T = 4, `reference: base`", _partition("random", 4) | {"reference": "base"}),
    Variant("plain DPO, β a quarter", None, overrides={"rl_beta": 0.025}),
)


def entry(folder: Path, name: str) -> dict[str, Any]:
    """A `datasets:` entry."""
    return {
        "path": str(folder / f"{name}.jsonl"),
        "ds_type": "json",
        "split": "train",
        "type": "chat_template.default",
        "field_messages": "messages",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
    }


def order_of(variant: Variant, accuracies: Mapping[str, float]) -> Sequence[str]:
    """The names of the sources as the variant lists them; `accuracies` are those of the base model."""
    orders = {
        "natural": NATURAL,
        "reversed": NATURAL[::-1],
        "hard_to_easy": sorted(NATURAL, key=lambda name: accuracies[name]),
    }
    return orders[variant.order]


def config(
    variant: Variant, settings: Settings, seed: int, folder: Path, out: Path, accuracies: Mapping[str, float]
) -> dict[str, Any]:
    """The host's config of a variant. A seed decides data, base model, split and the order of the rows."""
    shared: dict[str, Any] = {
        "base_model": str(folder / "base"),
        "chat_template": "tokenizer_default",
        "sequence_len": 32,
        "datasets": [entry(folder, name) for name in order_of(variant, accuracies)],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "output_dir": str(out),
        "rl_beta": settings.beta,
        "num_epochs": settings.num_epochs,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.1,
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "attn_implementation": "sdpa",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 30,
        "seed": seed,
        **variant.overrides,
    }
    if variant.block is None:
        return shared | {"rl": "dpo"}
    # Padded rows, as the host's plain DPO has them: all variants compute alike.
    block = copy.deepcopy(dict(variant.block)) | {"export_steps": "last", "packed": False}
    if block.get("partition", {}).get("strategy") in ("random", "stratified"):
        block["partition"]["seed"] = seed
    return shared | {"rl": "sdpo", "plugins": ["sdpo_plugin.SDPOPlugin"], "sdpo": block}
