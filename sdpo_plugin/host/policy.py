"""The weights of the policy: M_0 again, M_{t-1} as it was exported, M_t to be exported."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from transformers import PreTrainedModel

from sdpo_plugin.host.engines import engine, ranks
from sdpo_plugin.host.engines.external import load_base, load_reference
from sdpo_plugin.host.engines.fsdp import saving_whole, shard
from sdpo_plugin.host.engines.memory import free_memory
from sdpo_plugin.host.engines.weights import Snapshot, load_adapter, save_adapter
from sdpo_plugin.host.evaluation.evaluate import Evaluated, evaluate
from sdpo_plugin.host.forward.finite import require_finite_weights
from sdpo_plugin.host.forward.packed import pack_second_model
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.write_errors import explaining_host_errors
from sdpo_plugin.plan import M_0
from sdpo_plugin.run_dir.models import model_dir
from sdpo_plugin.run_dir.sealed import CARD

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

LOG = logging.getLogger("axolotl.sdpo_plugin")


class Policy:
    """The model that a trainer holds, from step to step.

    With `policy_init: base` a copy of M_0 is kept while there are steps to train from it.

    Attributes:
        stand_in: M_{t-1} beside the policy, where a run is resumed whose policy in memory is M_0 already; None: the
            policy itself is the model that the runner names.
    """

    def __init__(self, trainer: "StepwiseDPOTrainer", setup: RunSetup) -> None:
        shard(trainer, trainer.model)
        self._trainer, self._setup = trainer, setup
        self.stand_in: PreTrainedModel | None = None
        self._base: Snapshot | None = None
        if setup.block.policy_init == "base" and setup.session.start.action.kind not in ("finish", "save"):
            self._base = self._copy_of_base()

    def _copy_of_base(self) -> Snapshot:
        start = self._setup.session.start
        if start.ledger is not None and M_0 in start.ledger.exports:
            directory = ranks.on_rank_0(partial(model_dir, self._setup.run, start.ledger, M_0))
            assert directory is not None
            load_adapter(self._trainer.model, directory)
        copy = Snapshot(self._trainer.model)
        sizes = ", ".join(f"{size:,}" for size in ranks.gather([copy.num_bytes]))
        if self._trainer.accelerator.is_main_process:
            LOG.info("policy_init: base: a copy of M_0 stays in main memory, bytes on each rank: %s", sizes)
        return copy

    def load(self, directory: Path) -> None:
        """Make it the model in ``directory``. A full model the host has loaded from there, instead of the base's."""
        if self._setup.cfg.adapter:
            load_adapter(self._trainer.model, directory)
        elif not self._setup.session.is_redirected:  # policy_init: base; M_{t-1} is needed for its log-probs alone
            self.stand_in = load_reference(self._setup.cfg, str(directory), self._trainer)
            pack_second_model(self._trainer, self.stand_in, self._setup.rows, self._setup.cfg, self._setup.block.packed)

    @contextmanager
    def another(self, model: str, directory: Path | None) -> Iterator[None]:
        """Within this context it is an earlier model, as far as log-probs are concerned.

        An adapter takes the place of the policy's; of a full model a second one is loaded, and goes again.

        Args:
            model: its name.
            directory: where it was exported to; None: it is the base model.

        Raises:
            ConfigError: the base model is not what it was: tokens were added to it, and embeddings drawn at random.
        """
        if self._setup.cfg.adapter:
            assert directory is not None, "an adapter M_0 is exported too"
            engine.release(self._trainer)
            own = Snapshot(self._trainer.model)
            load_adapter(self._trainer.model, directory)
            yield
            engine.release(self._trainer)
            own.restore(self._trainer.model)  # not after an error, which one rank may have alone: this needs them all
            return
        own_stand_in, cfg = self.stand_in, self._setup.cfg
        if directory is None:
            self.stand_in = load_base(cfg, self._trainer)
        else:
            ranks.require_seen_by_all(directory, f"{model} has been exported to", self._setup.run.root)
            self.stand_in = load_reference(cfg, str(directory), self._trainer)
        pack_second_model(self._trainer, self.stand_in, self._setup.rows, cfg, self._setup.block.packed)
        try:
            yield
        finally:
            self.stand_in = own_stand_in
            free_memory()

    def restart(self) -> None:
        """Make it M_0 again."""
        assert self._base is not None
        if self.stand_in is not None:
            self.stand_in = None
            free_memory()
        engine.release(self._trainer)
        self._base.restore(self._trainer.model)

    def evaluate(self, name: str, run_id: str, *, is_end: bool, check: Callable[[], None]) -> None:
        """Have lm-eval evaluate it, or M_{t-1} that stands in for it, where the config asks for that.

        Args:
            name: of the model, "M_0" … "M_T".
            run_id: of the run.
            is_end: it is M_0 or M_T.
            check: called before every batch, on every rank; it may end the run.
        """
        evaluate(self._trainer, self._setup, Evaluated(name, run_id, is_end), check, self.stand_in)

    def export_base_adapter(self, directory: Path) -> bool:
        """Write an adapter M_0; False where M_0 is the base model itself."""
        if not self._setup.cfg.adapter:
            return False
        model = self._trainer.model
        with explaining_host_errors(directory):
            save_adapter(
                model, lambda weights: ranks.on_rank_0(lambda: model.save_pretrained(directory, state_dict=weights))
            )
            ranks.on_rank_0(lambda: (directory / CARD).unlink(missing_ok=True))  # PEFT's; it names the base by its path
        return True

    def export(self, name: str, directory: Path) -> None:
        """Write weights (or adapter) and tokenizer as the host saves them.

        Raises:
            TrainingError: a weight is not finite.
            OutputError: they could not be written.
        """
        require_finite_weights(self._trainer, name)
        with explaining_host_errors(directory), saving_whole(self._trainer):
            # internal: no push to the hub for every step
            self._trainer.save_model(str(directory), _internal_call=True)
            ranks.wait_for_all()

    def hand_over(self, args: AxolotlDPOConfig) -> None:
        """Leave M_T to the host, which saves it, with its card and the push to the hub, by ``args``, its own."""
        self._trainer.args = args
        engine.require_engine(self._trainer)
