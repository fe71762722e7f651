"""The reference pass of a trainer that the host built, against TRL's own functions over the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logps = NDArray[np.float64]


def build_trainer(config: str) -> Any:
    """The trainer of an `rl: sdpo` config, by the host's own functions, up to where it would train."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(config)
    meta = PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    trainer, *_ = setup_model_and_trainer(cfg, meta)
    return trainer


def under_deepspeed_in_bfloat16(config: str) -> dict[str, list[float]]:
    """What becomes of two columns of a batch where DeepSpeed computes in bfloat16; runs in the child."""
    from types import SimpleNamespace

    import torch

    trainer = build_trainer(config)
    trainer.is_deepspeed_enabled = True
    engine = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    trainer.accelerator.state.__dict__["deepspeed_plugins"] = {"default": engine}
    trainer.accelerator.state.__class__.deepspeed_plugin = property(lambda state: engine)
    numbers = torch.tensor([-300.123, -1.25])
    prepared = trainer._prepare_inputs({"ref_chosen_logps": numbers, "ref_rejected_logps": numbers, "other": numbers})
    return {name: column.float().tolist() for name, column in prepared.items()}


class TableMade(Exception):  # noqa: N818 - it ends a run where a test wants it to
    """Carries the table of D_1 out of a run that was about to train."""


def table_of_first_step(trainer: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Let a run come to where the table of D_1 is made; return it, and the rows of each batch."""
    collate, batches = trainer.data_collator, []

    def record(features: list[dict[str, Any]]) -> Any:
        batches.append(features)
        return collate(features)

    def stop(step: Any, *args: Any) -> None:
        raise TableMade(step.training.reference)

    trainer.data_collator, trainer.run_host_training = record, stop
    try:
        trainer.train()
    except TableMade as made:
        return made.args[0], batches
    finally:
        trainer.data_collator = collate
    raise AssertionError("the run ended before its first step")


def packed_tokens(config: str) -> dict[str, Any]:
    """Tokens of each batch of the pass over D_1, packed, and of the longest row before it is cut; runs in the child."""
    from sdpo_plugin.host.forward.packing import PackingCollator

    trainer, tokens, collate = build_trainer(config), [], PackingCollator.__call__

    def noted(collator: Any, rows: Any) -> Any:
        batch = collate(collator, rows)
        if collator is trainer.data_collator:  # not that of the trial
            tokens.append(batch["packed_ids"].shape[1])
        return batch

    def stop(step: Any, *args: Any) -> None:
        raise TableMade

    PackingCollator.__call__, trainer.run_host_training = noted, stop
    try:
        trainer.train()
    except TableMade:
        return {"batches": tokens, "longest": int(trainer.chain.args[1].sources[0].facts.lengths.max())}
    raise AssertionError("the run ended before its first step")


def compare_with_trl(config: str, batch_sizes: list[int]) -> dict[str, Any]:
    """How far the reference pass is from TRL's functions: in its own batches, and in file order in other batches.

    Runs in the child; the differences are the largest of any row and side, in nats.
    """
    from trl import DPOTrainer

    trainer = build_trainer(config)
    rows = list(trainer.chain.args[1].sources[0].train)
    table, batches = table_of_first_step(trainer)
    found = np.stack([table.chosen, table.rejected], axis=1).astype(np.float64)

    def by_trl(features: list[dict[str, Any]]) -> Logps:
        inputs = trainer._prepare_inputs(trainer.data_collator(features))
        trainer.model.eval()
        logps = DPOTrainer.compute_ref_log_probs(trainer, trainer.model, inputs)
        return np.stack([side.double().numpy() for side in logps], axis=1)

    def whole(parts: list[list[dict[str, Any]]]) -> Logps:
        return np.concatenate([by_trl(part) for part in parts])

    places = [number_of(feature, rows) for part in batches for feature in part]
    sizes = {size: [rows[at : at + size] for at in range(0, len(rows), size)] for size in batch_sizes}
    return {
        "rows": sorted(places) == list(range(len(rows))),
        "batches": [len(part) for part in batches],
        "nats": float(np.abs(found).mean()),
        "own batches": float(np.abs(found[places] - whole(batches)).max()),
        "file order": {size: float(np.abs(found - whole(parts)).max()) for size, parts in sizes.items()},
    }


def number_of(feature: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    """Where a row stands in the data set, by its token ids."""
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    (number,) = [n for n, row in enumerate(rows) if all(row[key] == feature[key] for key in keys)]
    return number
