"""The hooks of the host, each a few lines, each first asking whether this config is ours."""

import logging
from pathlib import Path
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from axolotl.utils.logging import get_logger

from sdpo_plugin import crash
from sdpo_plugin.args import SDPOConfig, parse_block
from sdpo_plugin.conflicts import TRAINER_CLS, TRAINING_CONFLICTS, check_conflicts
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host import compat, entry
from sdpo_plugin.host.best_model import keep_best_model
from sdpo_plugin.host.chain import Chain, tokenize
from sdpo_plugin.host.datasets import StepData, flatten_steps, load_steps, source_name, together
from sdpo_plugin.host.external import require_same_tokenizer
from sdpo_plugin.host.launcher import launchers
from sdpo_plugin.host.pool import preview
from sdpo_plugin.host.positions import check_positions
from sdpo_plugin.host.session import Session, describe
from sdpo_plugin.host.startup import check_vocabulary
from sdpo_plugin.misspelt import is_listed

# Named below "axolotl", whose level and handlers the host sets.
LOG: logging.LoggerAdapter[Any] = get_logger("axolotl.sdpo_plugin")


class SDPOPlugin(BasePlugin):  # type: ignore[misc]  # the host ships no types
    """Stepwise DPO for Axolotl: `plugins: [sdpo_plugin.SDPOPlugin]`, `rl: sdpo`."""

    def __init__(self) -> None:
        super().__init__()
        crash.install()  # the class may have been asked for by its module
        compat.require_supported_host()
        launchers()  # as they are now; one that goes while data are read is missed later
        self._steps: list[StepData] = []
        self._session: Session | None = None

    def get_input_args(self) -> str:
        """The schema of the `sdpo:` block."""
        return "sdpo_plugin.args.SDPOArgs"

    def register(self, cfg: DictDefault) -> None:
        """Turn `rl: sdpo` into the host's `rl: dpo` with our trainer, or refuse the config.

        Raises:
            ConfigError: a conflict or a wrong `sdpo:` block; nothing is loaded yet.
        """
        compat.undo_patches()  # of an earlier config in this process
        if not is_listed(cfg.get("plugins")):
            return
        if compat.is_sdpo(cfg):  # registered before: the config has its edits, this process may lack the patch
            compat.patch_host()
            return
        entry.require_spelling(cfg)
        inference = cfg.get("inference") and cfg.get("rl") is None  # `axolotl inference` takes `rl` out
        if cfg.get("rl") != "sdpo" and not inference:
            if cfg.get("sdpo") is not None:
                raise ConfigError(
                    f"an sdpo: block is set, but rl is {cfg.get('rl')!r}; set rl: sdpo, or remove the sdpo: block."
                )
            return
        block = entry.check_config(cfg)
        entry.check_output(cfg, block)
        flatten_steps(cfg, block)
        if not inference:
            cfg["rl"] = "dpo"
            cfg["trainer_cls"] = TRAINER_CLS
            cfg["precompute_ref_log_probs"] = True
            compat.patch_host()
        cfg["sdpo"] = block.model_dump(exclude_none=True)

    def on_config_validation_error(self, cfg: DictDefault) -> None:
        """The host refused the config: leave no patch behind."""
        compat.undo_patches()

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> TrainDatasetMeta | None:
        """Load every step; in `axolotl preprocess` print the plan."""
        if not compat.is_sdpo(cfg):
            return None
        check_conflicts(cfg, TRAINING_CONFLICTS)
        entry.require_own_trainer(cfg)
        block = _block(cfg)
        if self._session is not None:  # of an earlier config in this process, which failed
            self._session.release()
        session = Session(cfg, block)
        if not preprocess:
            session.check()
        if block.reference not in ("previous", "base"):
            require_same_tokenizer(cfg, block.reference)
        self._steps = load_steps(cfg, block)
        plan = preview(cfg, block, self._steps)  # on every rank: a pool that is too small ends them all
        if is_main_process():
            LOG.info("stepwise DPO (sDPO), %d steps\n%s", len(plan.steps), plan.table())
        if not preprocess:
            session.open(self._steps)
            if session.start.ledger is not None and is_main_process():
                LOG.info(describe(session.start))
            self._session = session
        first = self._steps[0]
        return TrainDatasetMeta(first.train, together(list(first.heldout.values())), first.total_num_steps)

    def pre_model_load(self, cfg: DictDefault) -> None:
        """The host has made its patches and read no weights: time to import the trainer and check what it relies on.

        Raises:
            UnsupportedHostError: it relies on what the installed host does not have.
        """
        if compat.is_sdpo(cfg):
            compat.require_supported_trainer()

    def post_model_load(self, cfg: DictDefault, model: Any) -> None:
        """A run that goes on has loaded its own model in place of the base model."""
        if compat.is_sdpo(cfg) and self._session is not None:
            self._session.model_is_loaded()

    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Hand the chain to the trainer."""
        if not compat.is_sdpo(cfg):
            return
        from sdpo_plugin.host.trainer import StepwiseDPOTrainer  # not at the top: compat.py says why

        if not isinstance(trainer, StepwiseDPOTrainer):
            raise entry.foreign_trainer(cfg, type(trainer))
        assert self._steps, "the host loads the data before it builds the trainer"
        keep_best_model(cfg, trainer, self._steps)
        sources, heldout = tokenize(trainer, self._steps)
        trainer.dataset_tags = [source_name(entry) for entry in cfg.datasets if not Path(entry["path"]).is_dir()]
        check_vocabulary(trainer, sources, heldout)
        check_positions(trainer, sources, heldout)
        assert self._session is not None
        trainer.attach(Chain(cfg, _block(cfg), self._session, sources, heldout))

    def post_train_unload(self, cfg: DictDefault) -> None:
        """Training is done: leave no patch and no data behind."""
        if compat.is_sdpo(cfg):
            compat.undo_patches()
            self._steps = []
            if self._session is not None:
                self._session.close()
                self._session = None


def _block(cfg: DictDefault) -> SDPOConfig:
    return parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None)
