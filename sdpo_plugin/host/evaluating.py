"""`axolotl evaluate`: the held-out sets of every step, under M_T or under the model that the command names.

The host would merge all entries of `datasets:`, evaluate on rows that were trained on, and take the base model for the
policy, and the policy for its own reference, so that every loss is ln 2.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from peft import PeftModel

from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import ConfigError, OutputError
from sdpo_plugin.host.data.loading import load_sources
from sdpo_plugin.host.data.tokenized import tokenize_heldout
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.forward.log_probs import log_prob_table
from sdpo_plugin.host.identity import base_model_of
from sdpo_plugin.measures import gamma_stats, implicit_reward_accuracy, reference_free_accuracy
from sdpo_plugin.plan import M_0
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.models import final_model_flaw
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import ReadableTables
from sdpo_plugin.tables import LogProbTable
from sdpo_plugin.text import text_table

LOG = logging.getLogger("axolotl.sdpo_plugin")


@dataclass(frozen=True)
class Evaluated:
    """The model that `axolotl evaluate` evaluates.

    Attributes:
        name: of the model, for the log: "M_T", or its path.
        directory: where it is read from; None: the host reads `base_model`.
        ledger: of the run in output_dir, where it is a run from this base model.
    """

    name: str
    directory: Path | None = None
    ledger: Ledger | None = None


def choose(cfg: DictDefault) -> Evaluated:
    """M_T where the run in output_dir is finished and `base_model` is what it began with; else what the config names.

    Raises:
        OutputError: M_T is not whole.
    """
    run = RunDir(Path(cfg.output_dir))
    ledger = Ledger.load(run.ledger) if run.ledger.exists() else None
    if ledger is not None and base_model_of(cfg) != ledger.identity["base_model"]:
        ledger = None
    if cfg.lora_model_dir:
        return Evaluated(str(cfg.lora_model_dir), Path(cfg.lora_model_dir), ledger)
    if ledger is None or not ledger.saved:
        return Evaluated(str(cfg.base_model), None, ledger)
    problem = final_model_flaw(run, ledger, deep=False)
    if problem:
        raise OutputError(
            f"the final model in {run.root} is not whole: {problem}. Run axolotl train once more with "
            "auto_resume_from_checkpoints: true, which writes it again, or name a model: --base-model."
        )
    return Evaluated(ledger.last_model, run.root, ledger)


def load_model(cfg: DictDefault, load: Callable[[DictDefault], Any]) -> Any:
    """Load the model that is evaluated; returns what the host's ``load(cfg)`` does (model, tokenizer, …).

    Under preference training the host hands an adapter's config to the trainer, and loads none.
    """
    chosen = on_rank_0(lambda: choose(cfg))
    _tell(f"evaluating {chosen.name}" + ("" if chosen.directory is None else f" from {chosen.directory}"))
    if chosen.directory is None or cfg.adapter:
        model, *rest = load(cfg)
        if chosen.directory is not None:
            model = PeftModel.from_pretrained(model, str(chosen.directory))
        return model, *rest
    written = cfg.base_model, cfg.base_model_config
    cfg.base_model = cfg.base_model_config = str(chosen.directory)
    try:
        return load(cfg)
    finally:
        cfg.base_model, cfg.base_model_config = written


def evaluate(cfg: DictDefault, trainer: Any) -> dict[str, float]:
    """Mean γ and both accuracies on every held-out set, by the names of metrics that the host writes to a file.

    Raises:
        ConfigError: no step has held-out rows.
    """
    chosen = on_rank_0(lambda: choose(cfg))
    heldout = tokenize_heldout(trainer, load_sources(cfg, parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None)))
    if not heldout:
        raise ConfigError(
            "axolotl evaluate has nothing to evaluate on: no step has held-out rows; set val_set_size or test_datasets."
        )
    size = trainer.args.per_device_eval_batch_size
    rows: list[tuple[str, ...]] = [
        ("held-out set", "rows", "mean γ", "reference-free accuracy", "implicit reward accuracy")
    ]
    metrics: dict[str, float] = {}
    for column, (name, dataset) in enumerate(heldout.items()):
        table = log_prob_table(trainer, dataset, size, chosen.name, f"held-out {name}")
        base = _of_base(cfg, chosen, column, table)
        found = {"gamma": gamma_stats(table).mean, "reference_free_accuracy": reference_free_accuracy(table)}
        found |= {} if base is None else {"implicit_reward_accuracy": implicit_reward_accuracy(table, base)}
        metrics |= {f"eval_{name}_{key}": value for key, value in found.items()}
        shown = [f"{value:+.3f}" if key == "gamma" else f"{value:.3f}" for key, value in found.items()]
        rows.append((name, f"{len(table):,}", *shown, *(["–"] if base is None else [])))
    _tell(f"{chosen.name} on held-out rows\n{text_table(rows)}")
    return metrics


def _of_base(cfg: DictDefault, chosen: Evaluated, column: int, table: LogProbTable) -> LogProbTable | None:
    """Log-probs of the same rows under M_0, where the run in output_dir has them."""
    if chosen.ledger is None:
        return None
    run = RunDir(Path(cfg.output_dir))
    return ReadableTables(run, chosen.ledger).read(run.heldout(M_0, column), table.rows_digest)


def _tell(text: str) -> None:
    if is_main_process():
        LOG.info(text)
