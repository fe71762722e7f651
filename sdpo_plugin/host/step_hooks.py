"""The user's own code before and after a step, called under Axolotl: on rank 0, while the others wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import Trainer, modeling_utils
from transformers.integrations import deepspeed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.layout import lay_out
from sdpo_plugin.host.engines.memory import free_memory
from sdpo_plugin.host.engines.ranks import on_rank_0, require_seen_by_all
from sdpo_plugin.host.identity import rows_of
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.step_host import AxolotlStepHost
from sdpo_plugin.plan import StepPlan, model_name
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.ledger import Hook, Ledger
from sdpo_plugin.run_dir.made_rows import MadeRows, begin_draft, keep_draft
from sdpo_plugin.run_dir.models import place_of
from sdpo_plugin.runner import Hooks
from sdpo_plugin.step_hooks import StepContext, call_hook

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

ASKED = (modeling_utils, deepspeed)  # where transformers asks whether ZeRO-3 is on


def hooks_of(trainer: "StepwiseDPOTrainer", setup: RunSetup, host: AxolotlStepHost) -> Hooks:
    """The hooks that the config names."""
    calls = _Calls(trainer, setup, host)
    every: Hooks = {"before_step": calls.before_step, "after_step": calls.after_step}
    return {key: call for key, call in every.items() if getattr(setup.block, key) is not None}


class _Calls:
    """Calls the hooks of a run.

    Args:
        trainer: reads what a hook has made.
        setup: of the run; rows that are made come to it.
        host: is told of rows that are made.
    """

    def __init__(self, trainer: "StepwiseDPOTrainer", setup: RunSetup, host: AxolotlStepHost) -> None:
        self._trainer, self._setup, self._host = trainer, setup, host

    def after_step(self, step: StepPlan, ledger: Ledger) -> None:
        """M_t has been written.

        Raises:
            HookError: the hook has failed.
        """
        on_rank_0(lambda: self._call("after_step", step, ledger, model_name(step.index)))

    def before_step(self, step: StepPlan, ledger: Ledger) -> MadeRows | None:
        """M_{t-1} stands; the rows of a step that waits for them.

        Raises:
            HookError: the hook has failed, or made no rows.
            DataError: its rows cannot be read, or not be trained on.
        """
        model = model_name(step.index - 1)
        if not step.is_awaited:
            return on_rank_0(lambda: self._call("before_step", step, ledger, model))

        def make() -> str:
            self._call("before_step", step, ledger, model, begin_draft(self._setup.run, step.name))
            return keep_draft(self._setup.run, step.name)

        digest = on_rank_0(make)
        require_seen_by_all(self._setup.run.made_rows, "sdpo.before_step has made", self._setup.run.root)
        return self._take_in(step, digest)

    def _take_in(self, step: StepPlan, digest: str) -> MadeRows:
        """Read the rows that are kept, and lay out the run with them."""
        try:
            self._setup, loaded = self._setup.with_made_rows(self._trainer, step.index)
        except DataError as error:
            raise DataError(
                f"{error}\nsdpo.before_step: {self._setup.block.before_step} has made these rows for step {step.name}: "
                f"{self._setup.run.made_rows_of(step.name)}. Mend it, and run the same command with "
                "auto_resume_from_checkpoints: true, which calls it again."
            ) from error
        self._host.layout = lay_out(self._setup.cfg, self._setup.block, self._setup.sources)
        return MadeRows(self._host.layout.plan, digest, on_rank_0(lambda: rows_of(loaded.train)))

    def _call(self, hook: Hook, step: StepPlan, ledger: Ledger, model: str, data_path: Path | None = None) -> None:
        name, run = getattr(self._setup.block, hook), self._setup.run
        place = place_of(run, ledger, model).absolute() if model in ledger.exports else ledger.plan.base_model
        context = StepContext(
            plan=ledger.plan,
            step=step,
            record=ledger.records[step.index - 1],
            model_dir=str(place),
            output_dir=run.root.absolute(),
            report=build_report(run),
            seed=self._trainer.args.seed,
            data_path=None if data_path is None else data_path.absolute(),
        )
        with models_loaded_whole(self._trainer):
            call_hook(hook, name, context)
        free_memory()


@contextmanager
def models_loaded_whole(trainer: Trainer) -> Iterator[None]:
    """Here transformers loads a model whole: under ZeRO-3 it would share it out among ranks that wait for this one.

    It asks its own DeepSpeed config whether it is to, and, where Axolotl has loaded the policy, a function that Axolotl
    has put there and that always says yes.
    """
    if not trainer.is_deepspeed_enabled:
        yield
        return
    said = [place.is_deepspeed_zero3_enabled for place in ASKED]
    unset_hf_deepspeed_config()
    for place in ASKED:
        place.is_deepspeed_zero3_enabled = lambda: False
    try:
        yield
    finally:
        for place, answer in zip(ASKED, said, strict=True):
            place.is_deepspeed_zero3_enabled = answer
        set_hf_deepspeed_config(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)
