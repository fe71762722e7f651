"""The ``StepHost`` of a run under Axolotl: what the runner asks, carried out by trainer, policy and passes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from transformers.trainer_utils import TrainOutput

from sdpo_plugin.host.data.layout import Layout
from sdpo_plugin.host.early import early_tables
from sdpo_plugin.host.engines.shares import AllRanks
from sdpo_plugin.host.forward.passes import Passes
from sdpo_plugin.host.identity import settings_of
from sdpo_plugin.host.picking import pick_rows
from sdpo_plugin.host.policy import Policy
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.step_args import step_args
from sdpo_plugin.host.telling import keep_history, tell
from sdpo_plugin.host.training import train_policy
from sdpo_plugin.plan import M_0, StepPlan, model_name
from sdpo_plugin.step_host import EarlyTables, PickedRows, Training, TrainOutcome
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


class AxolotlStepHost(AllRanks):
    """Does the work of ``runner.run_steps``, which says what each method is for.

    Args:
        trainer: the host's, which holds the model.
        setup: config, data and run directory.
        layout: the steps.
        policy: the weights of the trainer's model.
        passes: fills tables of log-probs.

    Attributes:
        output: the host's, of the step that was trained last; that of no training before.
        layout: the steps, with the rows that are known.
    """

    def __init__(
        self,
        trainer: "StepwiseDPOTrainer",
        setup: RunSetup,
        layout: Layout,
        policy: Policy,
        passes: Passes,
    ) -> None:
        self._trainer, self._setup, self.layout = trainer, setup, layout
        self._policy, self._passes = policy, passes
        self._host_args: AxolotlDPOConfig = trainer.args
        self.output = TrainOutput(0, 0.0, {})

    def early_tables(self, steps: Sequence[StepPlan], heldout: Sequence[str]) -> EarlyTables:
        """By the base model, or by an external reference."""
        other = self._policy.stand_in
        return early_tables(self._trainer, self._setup, self.layout, self._passes, steps, heldout, other)

    def pick_rows(self, step: StepPlan) -> PickedRows:
        """By the policy, or by M_{t-1} that stands in for it."""
        stand_in = self._policy.stand_in
        self.layout, picked = pick_rows(self._setup, self.layout, step, self._passes, stand_in)
        return picked

    def reference_table(self, step: StepPlan) -> LogProbTable:
        """By the policy, or by M_{t-1} that stands in for it."""
        model = model_name(step.index - 1)
        return self._passes.step_table(step, self.layout.data(step), model, self._policy.stand_in)

    def heldout_tables(self, model: str, names: Sequence[str]) -> dict[str, LogProbTable]:
        """By the policy, or by M_{t-1} that stands in for it."""
        return self._passes.heldout_tables(self.layout, names, model, self._policy.stand_in)

    def sampled_tables(self, model: str, steps: Sequence[StepPlan]) -> dict[int, LogProbTable]:
        """Likewise, of the rows that the plan's diagnostics draw."""
        return self._passes.sampled_tables(self.layout, steps, model, self._policy.stand_in)

    def evaluate(self, model: str, run_id: str) -> None:
        """By lm-eval: the policy, or M_{t-1} that stands in for it."""
        is_end = model in (M_0, model_name(len(self.layout.plan.steps)))
        check = partial(self._passes.end_if_asked, f"the evaluation of {model}")
        self._policy.evaluate(model, run_id, is_end=is_end, check=check)

    def restart_policy(self) -> None:
        """From the copy in main memory."""
        self._policy.restart()

    def load_policy(self, model: str, directory: Path) -> None:
        """From the export."""
        self._policy.load(directory)

    def another_model(self, model: str, directory: Path | None) -> AbstractContextManager[None]:
        """From its export, or from the base model."""
        return self._policy.another(model, directory)

    def settings(self, step: StepPlan) -> dict[str, Any]:
        """As the config of the step has them."""
        cfg, refresh = self.layout.data(step).cfg, self._setup.block.refresh_of(step.index)
        return {**settings_of(cfg, self._host_args.world_size, refresh), "packed": self._passes.are_packed}

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        """By the host's own training loop."""
        outcome, self.output = train_policy(
            self._trainer, step, training, self.layout, self.args_of(step), self._passes
        )
        self.on_rank_0(lambda: keep_history(self._setup.run, step, self._trainer.state.log_history))
        return outcome

    def args_of(self, step: StepPlan) -> AxolotlDPOConfig:
        """The training arguments of a step."""
        data, directory = self.layout.data(step), self._setup.run.step(step)
        return step_args(self._host_args, data.cfg, data.total_num_steps, bool(data.heldout), directory)

    def export_base_adapter(self, directory: Path) -> bool:
        """The adapter, with LoRA."""
        return self._policy.export_base_adapter(directory)

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """As the host saves its final model."""
        self._policy.export(model_name(step.index), directory)

    def report(self) -> None:
        """Written anew; what a step did is said when its model has been looked at."""
        self._trainer.loggers.log_report(self.on_rank_0(lambda: tell(self._setup.run)))
