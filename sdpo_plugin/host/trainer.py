"""The host's DPO trainer, made to train a chain: ``train()`` runs the host's own ``train()`` once a step."""

import copy
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from transformers import TrainerControl, set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from sdpo_plugin import gate
from sdpo_plugin.disk import require_space
from sdpo_plugin.drift import require_same_step
from sdpo_plugin.errors import TrainingError
from sdpo_plugin.files import free_bytes
from sdpo_plugin.host import distributed
from sdpo_plugin.host.chain import Chain
from sdpo_plugin.host.checkpoints import EvaluationLeft, StopAtStep, written
from sdpo_plugin.host.datasets import together, with_reference
from sdpo_plugin.host.dropout import disable_functional_dropout
from sdpo_plugin.host.identity import settings_of
from sdpo_plugin.host.numbers import require_finite_loss, require_finite_weights
from sdpo_plugin.host.pool import lay_out
from sdpo_plugin.host.progress import StepProgress, restart_loggers
from sdpo_plugin.host.scorer import ScoringTrainer
from sdpo_plugin.host.scoring import score
from sdpo_plugin.host.startup import disk_need
from sdpo_plugin.host.step_args import step_args
from sdpo_plugin.host.stopping import Stopped, StopRequest
from sdpo_plugin.host.weights import gathered
from sdpo_plugin.ledger import Ledger
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.report import write_report
from sdpo_plugin.resume import M_0
from sdpo_plugin.runner import Training, TrainOutcome, run_steps

LOG = logging.getLogger("axolotl.sdpo_plugin")


class StepwiseDPOTrainer(ScoringTrainer):
    """Axolotl's DPO trainer for `rl: sdpo`; a ``StepHost`` for ``run_steps``.

    Model load, final save, model card, hub push and teardown stay the host's: the chain runs inside its ``train()``.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "dpo", "stepwise-dpo"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._step: StepPlan | None = None
        self._reference: ReferenceTable | None = None  # of D_t, while step t trains
        self._built = False
        self._output: TrainOutput | None = None
        super().__init__(*args, **kwargs)
        self._built = True
        if self.args.disable_dropout:
            disable_functional_dropout(self.model)
        self._host_args: AxolotlDPOConfig = self.args
        self._progress = StepProgress(self.callback_handler.callbacks)
        self.add_callback(self._progress)
        self.add_callback(StopAtStep(self))

    def attach(self, chain: Chain) -> None:
        """Hand over the chain that ``train()`` will run.

        Raises:
            ConfigError: a DeepSpeed config under which M_t could not be written.
        """
        distributed.require_usable_deepspeed(self)
        self._callback_states = [(cb, copy.deepcopy(cb.state())) for cb in self._stateful_callbacks()]
        scaler = self.accelerator.scaler
        self._scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())
        self._attached = chain

    # --- the host's entry points ---

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run the chain, or what is left of it. ``self.model`` is M_T when it returns.

        Args:
            resume_from_checkpoint: not looked at: the session knows where the chain goes on.
            kwargs: the host's others; a chain has no use for them.

        Returns:
            The host's output of the last step.

        Raises:
            ConfigError: a step is resumed with other hyper-parameters than it began with.
        """
        chain, start = self._chain, self._chain.session.start
        self._keep_base()
        self._stop = StopRequest()
        with self._stop.listening():
            scores = self._pool_scores()
            self._layout = lay_out(chain.cfg, chain.block, chain.sources, chain.heldout, list(scores.values()))
            plan = self._layout.plan
            tables = {chain.run.key(path): table.checksum() for path, table in scores.items()}
            ledger = start.ledger or Ledger.begin(plan, chain.session.identity, tables)
            self._check(plan, ledger)
            run_steps(plan, self, chain.run, ledger, self._report, start)
        self.args = self._host_args  # the host saves the final model, its card and the hub push by these
        distributed.require_engine(self)
        return self._output or TrainOutput(0, 0.0, {})

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """In the constructor nothing is scored yet; `axolotl evaluate` is given the policy as its own reference."""
        if not self._built:
            return dataset
        return with_reference(dataset, score(self, dataset, batch_size, "the model", name))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The host's loss; the first one of a step, before the first update, goes through the ln 2 gate."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._step is not None and self.model.training:
            loss = result[0] if return_outputs else result
            assert self._reference is not None
            require_finite_loss(self, model, loss, inputs, self._reference, partial(self._name_row, self._step))
            if self._first_loss is None:
                self._pass_gate(self._step, loss, inputs)
        return result

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's training step. The host's collects garbage after every micro-batch, which costs more than a small
        model's step; `gc_steps` and `torch_empty_cache_steps` do the same as often as the user wants."""
        loss: torch.Tensor = super(AxolotlDPOTrainer, self).training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Every logged point says its step, and counts updates over the whole chain: `global_step` restarts."""
        if self._step is not None:
            logs |= {"sdpo/step": self._step.index, "sdpo/global_step": self._updates_before + self.state.global_step}
        super().log(logs, start_time)

    # --- StepHost ---

    def settings(self, step: StepPlan) -> dict[str, Any]:
        """See ``StepHost``."""
        return settings_of(self._data.steps[step.index - 1].cfg, self.args.world_size)

    def train_step(self, step: StepPlan, training: Training) -> TrainOutcome:
        """See ``StepHost``: everything that a separate run would begin with is begun afresh, but the weights."""
        chain, plan = self._chain, self._data.plan
        distributed.release(self)
        data = self._data.steps[step.index - 1]
        self.args = self._args_of(step)
        self.beta, self.label_smoothing = self.args.beta, self.args.label_smoothing
        self.loss_types = self.args.loss_type
        self.loss_weights = self.args.loss_weights or [1.0] * len(self.loss_types)
        self.train_dataset = with_reference(data.train, training.reference)
        heldout = [with_reference(chain.heldout[name], training.heldout[name]) for name in data.heldout]
        self.eval_dataset = together(heldout)
        self._restart_counters()
        self._updates_before = sum(s.num_optimizer_steps for s in plan.steps[: step.index - 1])
        self._progress.step, self._progress.num_steps = step, len(plan.steps)
        set_seed(self.args.seed)  # a separate run seeds when its trainer is built, and draws nothing before it trains
        checkpoint = training.checkpoint
        self.begin_sealing(training.about, checkpoint)
        # The evaluation at the start is made already; early stopping would count it a second time.
        self.args.eval_on_start = self.args.eval_on_start and checkpoint is None
        self._step, self._reference = step, training.reference
        try:
            self._output = super().train(None if checkpoint is None else str(checkpoint))
        except EvaluationLeft as left:  # at the start, or once more where a checkpoint is resumed
            where = f"step {step.name} begins again" if checkpoint is None else f"step {step.name} resumes {checkpoint}"
            raise Stopped(left.signum, f"an evaluation under way will be made again, and {where}") from None
        finally:
            self._step = self._reference = None
            self.end_sealing()
        return self._outcome(step)

    def export_start(self, directory: Path) -> bool:
        """See ``StepHost``."""
        if not self._chain.cfg.adapter:
            return False
        with gathered(self.model), written(directory):
            self.on_rank_0(lambda: self.model.save_pretrained(str(directory)))
        return True

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """See ``StepHost``: weights (or adapter) and tokenizer as the host saves them."""
        require_finite_weights(self, f"M_{step.index}")
        with written(directory):
            self.save_model(str(directory), _internal_call=True)  # internal: no push to the hub for every step
            distributed.wait_for_all()

    # --- inside ---

    def _report(self) -> None:
        run = self._chain.run
        with written(run.report):
            write_report(run)

    def _check(self, plan: Plan, ledger: Ledger) -> None:
        """Begun steps are as they began, and what is left fits on the disk."""
        chain, start = self._chain, self._chain.session.start
        left = []
        for step, record in zip(plan.steps, ledger.steps, strict=True):
            if record.state not in ("planned", "scored"):
                half = start.checkpoint is not None and step.index == start.action.step
                require_same_step(step.name, record.settings, self.settings(step), from_checkpoint=half)
            if record.state != "exported":
                left.append((step, self._args_of(step)))
        need = disk_need(self, left, plan.export_steps, has_begun=M_0 in ledger.exports)
        free = self.on_rank_0(partial(free_bytes, chain.run.root))
        if self.accelerator.is_main_process:
            LOG.info("disk space that is still to be written\n%s", need.table(free))
        require_space(need, free, str(chain.run.root))

    def _args_of(self, step: StepPlan) -> AxolotlDPOConfig:
        data = self._data.steps[step.index - 1]
        out = self._chain.run.step(step)
        return step_args(self._host_args, data.cfg, data.total_num_steps, bool(data.heldout), out)

    def _outcome(self, step: StepPlan) -> TrainOutcome:
        assert self._first_loss is not None
        assert self._output is not None
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        final_loss = losses[-1] if losses else self._output.training_loss
        if not math.isfinite(final_loss):
            raise TrainingError(
                f"step {step.name} ended with loss {final_loss}; its model is not exported. Set a lower learning_rate, "
                "or train in bf16 or fp32 instead of fp16."
            )
        return TrainOutcome(self._first_loss, final_loss, self.state.global_step, self._earlier_seconds)

    def _stateful_callbacks(self) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, ExportableState)]

    def _restart_counters(self) -> None:
        """What counts or averages (metrics not logged yet, early stopping, fp16's loss scale) begins each step as it
        began the run."""
        for metrics in self._metrics.values():
            metrics.clear()
        self._total_train_tokens = 0
        self.control = TrainerControl()
        for callback, state in self._callback_states:
            for name, value in state["attributes"].items():
                setattr(callback, name, copy.deepcopy(value))
        if self._scaler_state is not None:
            self.accelerator.scaler.load_state_dict(self._scaler_state)
        restart_loggers(self.callback_handler.callbacks)

    def _pass_gate(self, step: StepPlan, loss: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        self._first_loss = float(self.accelerator.gather(loss.detach().float().reshape(1)).mean())
        if not step.starts_at_reference:
            return  # the margins of the first batch say how far policy and reference are apart
        plain = not self.use_weighting and not self.aux_loss_enabled
        gate.check_start(
            step=step.name,
            loss=self._first_loss,
            margin=self._metrics["train"]["rewards/margins"][-1],
            beta=self.beta,
            tolerance=gate.tolerance_nats(self._half_precision(), distributed.largest(inputs["input_ids"].shape[1])),
            expected=gate.start_loss(self.loss_types, self.loss_weights, self.beta, self.label_smoothing)
            if plain
            else None,
        )

    def _half_precision(self) -> bool:
        half = {torch.bfloat16, torch.float16}
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        return bool(self.args.bf16 or self.args.fp16 or self.args.tf32 or dtypes & half)
