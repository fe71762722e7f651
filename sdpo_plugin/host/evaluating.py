"""`axolotl evaluate`: the held-out sets of every step, under M_T or under the model that the command names.

The host would merge all entries of `datasets:`, evaluate on rows that were trained on, and take the base model for the
policy, and the policy for its own reference, so that every loss is ln 2.
"""

import logging
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process

from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.data.loading import load_sources
from sdpo_plugin.host.data.tokenized import tokenize_heldout
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.evaluated_model import Evaluated, choose
from sdpo_plugin.host.forward.table import tables_by_name
from sdpo_plugin.measures import gamma_stats, implicit_reward_accuracy, reference_free_accuracy
from sdpo_plugin.plan import M_0
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import ReadableTables
from sdpo_plugin.tables import LogProbTable
from sdpo_plugin.text import text_table

LOG = logging.getLogger("axolotl.sdpo_plugin")


def evaluate(cfg: DictDefault, trainer: Any) -> dict[str, float]:
    """Mean γ and both accuracies on every held-out set, by the names of metrics that the host writes to a file.

    Raises:
        ConfigError: no step has held-out rows.
    """
    chosen = on_rank_0(lambda: choose(cfg))
    block = parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None)
    heldout, cfgs = tokenize_heldout(trainer, load_sources(cfg, block))
    if not heldout:
        raise ConfigError(
            "axolotl evaluate has nothing to evaluate on: no step has held-out rows; set val_set_size or test_datasets."
        )
    tables = tables_by_name(trainer, block.packed, heldout, cfgs, chosen.name)
    rows: list[tuple[str, ...]] = [
        ("held-out set", "rows", "mean γ", "reference-free accuracy", "implicit reward accuracy")
    ]
    metrics: dict[str, float] = {}
    for column, (name, table) in enumerate(tables.items()):
        base = _of_base(cfg, chosen, column, table)
        found = {"gamma": gamma_stats(table).mean, "reference_free_accuracy": reference_free_accuracy(table)}
        found |= {} if base is None else {"implicit_reward_accuracy": implicit_reward_accuracy(table, base)}
        metrics |= {f"eval_{name}_{key}": value for key, value in found.items()}
        shown = [f"{value:+.3f}" if key == "gamma" else f"{value:.3f}" for key, value in found.items()]
        rows.append((name, f"{len(table):,}", *shown, *(["–"] if base is None else [])))
    if is_main_process():
        LOG.info("%s on held-out rows\n%s", chosen.name, text_table(rows))
    return metrics


def _of_base(cfg: DictDefault, chosen: Evaluated, column: int, table: LogProbTable) -> LogProbTable | None:
    """Log-probs of the same rows under M_0, where the run in output_dir has them."""
    if chosen.ledger is None:
        return None
    run = RunDir(Path(cfg.output_dir))
    return ReadableTables(run, chosen.ledger).read(run.heldout(M_0, column), table.rows_digest)
