"""The model of `axolotl evaluate`: M_T of a finished run, or the one that the command names."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from peft import PeftModel

from sdpo_plugin.errors import OutputError
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.identity import MODEL, base_model_of
from sdpo_plugin.host.starting_adapter import starting_adapter
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.models import final_model_flaw
from sdpo_plugin.run_dir.paths import RunDir

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
    asked, begun = base_model_of(cfg), {} if ledger is None else ledger.identity["base_model"]
    if asked.get(MODEL) != begun.get(MODEL):
        ledger = None
    adapter = starting_adapter(cfg)
    # The adapter that the run started from is no wish to evaluate it, once the run is finished.
    if adapter is not None and (ledger is None or not ledger.saved or asked != begun):
        return Evaluated(str(cfg.lora_model_dir), adapter, ledger)
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
    if is_main_process():
        LOG.info("evaluating %s%s", chosen.name, "" if chosen.directory is None else f" from {chosen.directory}")
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
