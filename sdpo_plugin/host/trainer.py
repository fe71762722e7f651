"""The host's DPO trainer, made to train a chain: ``train()`` runs the host's own ``train()`` once a step."""

import copy
import math
from collections.abc import Callable, Mapping
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
from sdpo_plugin.errors import TrainingError
from sdpo_plugin.host import distributed
from sdpo_plugin.host.chain import Chain
from sdpo_plugin.host.datasets import StepData, together, with_reference
from sdpo_plugin.host.dropout import disable_functional_dropout
from sdpo_plugin.host.external import free_memory, load_reference
from sdpo_plugin.host.pool import Layout, lay_out, needs_scores
from sdpo_plugin.host.progress import StepProgress, restart_loggers
from sdpo_plugin.host.scoring import score
from sdpo_plugin.host.step_args import step_args
from sdpo_plugin.host.weights import Snapshot
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.report import write_report
from sdpo_plugin.runner import M_0, EarlyTables, TrainOutcome, run_steps


class StepwiseDPOTrainer(AxolotlDPOTrainer):
    """Axolotl's DPO trainer for `rl: sdpo`; a ``StepHost`` for ``run_steps``.

    Model load, final save, model card, hub push and teardown stay the host's: the chain runs inside its ``train()``.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "dpo", "stepwise-dpo"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._attached: Chain | None = None
        self._layout: Layout | None = None
        self._base: Snapshot | None = None
        self._step: StepPlan | None = None
        self._first_loss: float | None = None
        self._built = False
        self._output: TrainOutput | None = None
        super().__init__(*args, **kwargs)
        self._built = True
        if self.args.disable_dropout:
            disable_functional_dropout(self.model)
        self._host_args: AxolotlDPOConfig = self.args
        self._progress = StepProgress(self.callback_handler.callbacks)
        self.add_callback(self._progress)

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
        """Run the chain. ``self.model`` is M_T when it returns.

        Returns:
            The host's output of the last step.
        """
        assert not resume_from_checkpoint, "refused when the config was read"
        chain = self._chain
        if chain.block.policy_init == "base":
            self._base = Snapshot(self.model)
        numbered = list(enumerate(chain.sources, 1)) if needs_scores(chain.block) else []
        scores = [self._score(source, M_0, f"source {number}") for number, source in numbered]
        self._layout = lay_out(chain.cfg, chain.block, chain.sources, chain.heldout, scores)
        run_steps(self._layout.plan, self, chain.run, on_progress=lambda: write_report(chain.run))
        self.args = self._host_args  # the host saves the final model, its card and the hub push by these
        assert self._output is not None
        return self._output

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
        if self._step is not None and self._first_loss is None and self.model.training:
            self._pass_gate(self._step, result[0] if return_outputs else result, inputs)
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

    def score_before(self, plan: Plan) -> EarlyTables:
        """See ``StepHost``. What ordered the data is not computed again."""
        chain = self._chain
        tables = list(zip(plan.steps, self._data.base_tables, strict=False))
        if chain.block.reference == "base" and not tables:
            tables = [(step, self._score_data(step, M_0)) for step in plan.steps]
        if chain.block.reference in ("previous", "base"):
            return EarlyTables(tables)
        name = plan.steps[0].reference
        model = load_reference(chain.cfg, chain.block.reference, self)
        tables += [(step, self._score_data(step, name, model)) for step in plan.steps]
        size = self.args.per_device_eval_batch_size
        heldout = {key: score(self, rows, size, name, f"held-out {key}", model) for key, rows in chain.heldout.items()}
        del model
        free_memory()
        return EarlyTables(tables, {name: heldout})

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """See ``StepHost``."""
        return self._score_data(step, model_name(step.index - 1))

    def score_heldout(self, model: str) -> dict[str, ReferenceTable]:
        """See ``StepHost``."""
        size, heldout = self.args.per_device_eval_batch_size, self._chain.heldout
        return {name: score(self, rows, size, model, f"held-out {name}") for name, rows in heldout.items()}

    def restart_policy(self) -> None:
        """See ``StepHost``."""
        assert self._base is not None
        distributed.release(self)
        self._base.restore(self.model)

    def train_step(
        self, step: StepPlan, reference: ReferenceTable, heldout: Mapping[str, ReferenceTable]
    ) -> TrainOutcome:
        """See ``StepHost``: everything that a separate run would begin with is begun afresh, but the weights."""
        chain, plan = self._chain, self._data.plan
        distributed.release(self)
        data = self._data.steps[step.index - 1]
        self.args = step_args(self._host_args, data.cfg, data.total_num_steps, bool(data.heldout), chain.run.step(step))
        self.beta, self.label_smoothing = self.args.beta, self.args.label_smoothing
        self.loss_types = self.args.loss_type
        self.loss_weights = self.args.loss_weights or [1.0] * len(self.loss_types)
        self.train_dataset = with_reference(data.train, reference)
        self.eval_dataset = together([with_reference(chain.heldout[name], heldout[name]) for name in data.heldout])
        self._restart_counters()
        self._updates_before = sum(s.num_optimizer_steps for s in plan.steps[: step.index - 1])
        self._progress.step, self._progress.num_steps = step, len(plan.steps)
        self._step, self._first_loss = step, None
        set_seed(self.args.seed)  # a separate run seeds when its trainer is built, and draws nothing before it trains
        try:
            self._output = super().train()
        finally:
            self._step = None
        assert self._first_loss is not None
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        final_loss = losses[-1] if losses else self._output.training_loss
        if not math.isfinite(final_loss):
            raise TrainingError(
                f"step {step.name} ended with loss {final_loss}; its model is not exported. Set a lower learning_rate, "
                "or train in bf16 or fp32 instead of fp16."
            )
        return TrainOutcome(self._first_loss, final_loss, self.state.global_step)

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """See ``StepHost``: weights (or adapter) and tokenizer as the host saves them."""
        self.save_model(str(directory), _internal_call=True)  # internal: no push to the hub for every step
        self.accelerator.wait_for_everyone()

    def on_rank_0(self, action: Callable[[], None]) -> None:
        """See ``StepHost``."""
        distributed.on_rank_0(action)

    # --- inside ---

    @property
    def _chain(self) -> Chain:
        assert self._attached is not None, "attach() comes before train()"
        return self._attached

    @property
    def _data(self) -> Layout:
        assert self._layout is not None
        return self._layout

    def _score(self, data: StepData, name: str, what: str, model: torch.nn.Module | None = None) -> ReferenceTable:
        """Batches have the size of training batches, so that what trains also scores."""
        return score(self, data.train, self.args.per_device_train_batch_size, name, what, model, data.facts)

    def _score_data(self, step: StepPlan, name: str, model: torch.nn.Module | None = None) -> ReferenceTable:
        return self._score(self._data.steps[step.index - 1], name, f"D_{step.index}", model)

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
            tolerance=gate.tolerance_nats(self._half_precision(), inputs["input_ids"].shape[1]),
            expected=gate.start_loss(self.loss_types, self.loss_weights, self.beta, self.label_smoothing)
            if plain
            else None,
        )

    def _half_precision(self) -> bool:
        half = {torch.bfloat16, torch.float16}
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        return bool(self.args.bf16 or self.args.fp16 or self.args.tf32 or dtypes & half)
