"""The hooks of the host for configs that are ours or look like it, each a few lines."""

import logging
from functools import partial
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from axolotl.utils.logging import get_logger

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.block import parse_block
from sdpo_plugin.host import compat, output_dir, patches, registration
from sdpo_plugin.host.best_model import keep_best_model
from sdpo_plugin.host.data.loading import LoadedSource, flatten_steps, names_for_cards
from sdpo_plugin.host.data_checks import check_before_training
from sdpo_plugin.host.launcher import launchers
from sdpo_plugin.host.session import Session, describe
from sdpo_plugin.host.setup import RunSetup, for_host, load
from sdpo_plugin.recognition import is_sdpo

# Named below "axolotl", whose level and handlers the host sets.
LOG: logging.LoggerAdapter[Any] = get_logger("axolotl.sdpo_plugin")


class Hooks:
    """What the plugin does where it is concerned; each hook first asks whether this config is ours.

    Raises:
        UnsupportedHostError: the installed host is not one that this package runs on.
    """

    def __init__(self) -> None:
        compat.require_supported_host()
        launchers()  # as they are now; one that goes while data are read is missed later
        self._sources: list[LoadedSource] = []
        self._session: Session | None = None
        self._written: dict[str, Any] = {}

    def register(self, cfg: DictDefault) -> None:
        """Turn `rl: sdpo` into the host's `rl: dpo` with our trainer, or refuse the config.

        Raises:
            ConfigError: a conflict or a wrong `sdpo:` block; nothing is loaded yet.
        """
        self.stand_aside()
        if is_sdpo(cfg):  # registered before: the config has its edits, this process may lack the patch
            patches.patch_host()
            return
        registration.require_spelling(cfg)
        inference = cfg.get("inference") and cfg.get("rl") is None  # `axolotl inference` takes `rl` out
        if cfg.get("rl") != "sdpo" and not inference:
            registration.require_no_block(cfg)
            return
        self._written = cfg.to_dict()
        block = registration.check_config(cfg)
        output_dir.check_output(cfg, block)
        flatten_steps(cfg, block)
        if not inference:
            registration.become_dpo(cfg)
            patches.patch_host()
        cfg["sdpo"] = block.model_dump(exclude_none=True)

    def stand_aside(self) -> None:
        """What follows is not ours: leave no patch behind."""
        patches.undo_patches()

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> TrainDatasetMeta | None:
        """Load every source; in `axolotl preprocess` print the plan."""
        if not is_sdpo(cfg):
            return None
        block = _block(cfg)
        registration.require_trainable(cfg, block)
        registration.require_hooks(block)
        if self._session is not None:  # of an earlier config in this process, which failed
            self._session.release()
        session = Session(cfg, block)
        if not preprocess:
            session.check()
        begins = not preprocess and not session.run.ledger.exists()
        self._sources, plan = load(cfg, block, session.made, begins=begins)
        if is_main_process():
            LOG.info("stepwise DPO (sDPO), %d steps\n%s", len(plan.steps), plan.table())
        if preprocess:
            check_before_training(cfg, block.check_data, self._sources)
        else:
            session.open(self._sources, plan)
            if session.start.ledger is not None and is_main_process():
                LOG.info(describe(session.start))
            self._session = session
        return for_host(self._sources)

    def pre_model_load(self, cfg: DictDefault) -> None:
        """The host has made its patches and read no weights: time to import the trainer and check what it relies on.

        Raises:
            UnsupportedHostError: it relies on what the installed host does not have.
        """
        if is_sdpo(cfg):
            compat.require_supported_trainer()

    def post_model_load(self, cfg: DictDefault, model: Any) -> None:
        """A run that is resumed has loaded its own model in place of the base model."""
        if is_sdpo(cfg) and self._session is not None:
            registration.check_filled_in(cfg)
            self._session.model_is_loaded()

    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Hand the chain to the trainer."""
        if not is_sdpo(cfg):
            return
        from sdpo_plugin.host.run import run_chain  # not at the top: compat.py says why
        from sdpo_plugin.host.trainer import StepwiseDPOTrainer

        if not isinstance(trainer, StepwiseDPOTrainer):
            raise registration.foreign_trainer(cfg, type(trainer))
        compat.require_trainer_as_built(trainer)
        keep_best_model(cfg, trainer, self._sources)
        trainer.dataset_tags = names_for_cards(cfg)
        assert self._session is not None, "the host loads the data before it builds the trainer"
        setup = RunSetup.of(trainer, cfg, _block(cfg), self._session, self._sources)
        trainer.attach(partial(run_chain, trainer, setup), cfg, self._written)

    def post_train(self, cfg: DictDefault) -> None:
        """The host calls this when the chain is run, and again when it has written everything."""
        if is_sdpo(cfg) and self._session is not None:
            self._session.has_come_further()

    def post_train_unload(self, cfg: DictDefault) -> None:
        """Training is done, or died (Axolotl 0.20 calls this then too): leave no patch and no data behind."""
        if is_sdpo(cfg):
            self.stand_aside()
            self._sources = []
            if self._session is not None:
                self._session.release()
                self._session = None


def _block(cfg: DictDefault) -> SDPOConfig:
    return parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None)
