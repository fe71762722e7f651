"""The rest of a run, checked before it begins: settings of begun steps, disk space."""

import logging
from typing import TYPE_CHECKING

from sdpo_plugin.host.disk_space import disk_need
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.step_host import AxolotlStepHost
from sdpo_plugin.plan import M_0, Plan
from sdpo_plugin.run_dir.disk import require_space
from sdpo_plugin.run_dir.drift import require_same_step
from sdpo_plugin.run_dir.files import free_bytes
from sdpo_plugin.run_dir.ledger import Ledger

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

LOG = logging.getLogger("axolotl.sdpo_plugin")


def check_what_is_left(
    trainer: "StepwiseDPOTrainer", setup: RunSetup, host: AxolotlStepHost, plan: Plan, ledger: Ledger
) -> None:
    """Refuse to resume steps with other settings than they began with, and runs that would fill the disk.

    Raises:
        ConfigError: a step was begun with other hyper-parameters.
        OutputError: what is left to be written does not fit on the disk.
    """
    start, left = setup.session.start, []
    for step, record in zip(plan.steps, ledger.records, strict=True):
        if record.state not in ("planned", "referenced"):
            half = start.checkpoint_of(step) is not None
            require_same_step(step.name, record.settings, host.settings(step), from_checkpoint=half)
        if record.state != "exported":
            left.append((step, host.args_of(step)))
    has_begun = M_0 in ledger.exports
    need, free = on_rank_0(
        lambda: (disk_need(trainer, left, plan.export_steps, has_begun=has_begun), free_bytes(setup.run.root))
    )
    if trainer.accelerator.is_main_process:
        LOG.info("disk space that is still to be written\n%s", need.table(free))
    require_space(need, free, str(setup.run.root))
