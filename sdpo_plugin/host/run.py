"""One run under Axolotl, from the loaded base model to M_T."""

import logging
from typing import TYPE_CHECKING

from transformers.trainer_utils import TrainOutput

from sdpo_plugin.host.cached_tables import passes_of
from sdpo_plugin.host.data.layout import lay_out
from sdpo_plugin.host.early import picked_rows, pool_tables
from sdpo_plugin.host.engines.memory import quick_collections
from sdpo_plugin.host.forward.packed import forward_pass
from sdpo_plugin.host.left_to_do import check_what_is_left
from sdpo_plugin.host.loggers.chain import ChainLoggers
from sdpo_plugin.host.policy import Policy
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.step_hooks import hooks_of
from sdpo_plugin.host.step_host import AxolotlStepHost
from sdpo_plugin.host.stopping import StopRequest, ending_together
from sdpo_plugin.run_dir.journal import Journal
from sdpo_plugin.runner import run_steps

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

LOG = logging.getLogger("axolotl.sdpo_plugin")


def run_chain(trainer: "StepwiseDPOTrainer", setup: RunSetup) -> TrainOutput:
    """Train the chain, or what is left of it; the host's output of the last step.

    Raises:
        ConfigError: a step is resumed with other hyper-parameters than it began with, or would have no rows.
        OutputError: what is left does not fit on the disk.
        Stopped: the run was asked to stop.
    """
    args, start, stop = trainer.args, setup.session.start, StopRequest()
    policy = Policy(trainer, setup)
    packing = forward_pass(trainer, setup.block.packed, setup.rows)
    with stop.listening(), ending_together(), quick_collections(), packing:
        passes = passes_of(trainer, setup, stop)
        pool = pool_tables(setup, passes)
        layout = lay_out(setup.cfg, setup.block, setup.sources, list(pool.values()), picked_rows(setup))
        host = AxolotlStepHost(trainer, setup, layout, policy, passes)
        ledger = setup.ledger(layout.plan, pool)
        check_what_is_left(trainer, setup, host, layout.plan, ledger)
        journal = Journal(setup.run, host, layout.plan, ledger)
        setup.session.has_begun()
        trainer.loggers = ChainLoggers(trainer, setup, layout.plan, host.args_of)
        with trainer.loggers.taking_over():
            run_steps(layout.plan, host, journal, start, hooks_of(trainer, setup, host))
    policy.hand_over(args)
    return host.output
