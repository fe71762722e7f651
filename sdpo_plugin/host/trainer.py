"""The host's DPO trainer, made to train a chain: ``train()`` runs the host's own ``train()`` once a step."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from transformers import TrainerControl, set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from sdpo_plugin import gate, report
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host import distributed
from sdpo_plugin.host.datasets import StepData, rows_of, together, with_reference
from sdpo_plugin.host.progress import StepProgress, restart_loggers
from sdpo_plugin.host.scoring import score
from sdpo_plugin.host.step_args import step_args
from sdpo_plugin.ledger import RunDir
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.runner import TrainOutcome, run_steps


@dataclass(frozen=True)
class Chain:
    """What the trainer needs beyond one data set: the steps, tokenized, and where the run writes."""

    plan: Plan
    run: RunDir
    steps: Sequence[StepData]
    heldout: Mapping[str, Dataset]


class StepwiseDPOTrainer(AxolotlDPOTrainer):
    """Axolotl's DPO trainer for `rl: sdpo`; a ``StepHost`` for ``run_steps``.

    Model load, final save, model card, hub push and teardown stay the host's: the chain runs inside its ``train()``.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "dpo", "stepwise-dpo"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._chain: Chain | None = None
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

    def prepare(self, dataset: Dataset, what: str) -> Dataset:
        """Tokenize a data set as the constructor did with the first one."""
        prepared = self._prepare_dataset(dataset, self.processing_class, self.args, what)
        return prepared.flatten_indices() if prepared._indices is not None else prepared

    def attach(self, chain: Chain) -> None:
        """Hand over the chain that ``train()`` will run.

        Raises:
            ConfigError: a DeepSpeed config under which M_t could not be written.
        """
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            zero = plugin.deepspeed_config["zero_optimization"]
            if not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise ConfigError(
                    "deepspeed: stage3_gather_16bit_weights_on_model_save is "
                    f"{zero.get('stage3_gather_16bit_weights_on_model_save')!r}, so M_t could not be written after a "
                    "step; set it to true in the DeepSpeed config."
                )
        self._callback_states = [(cb, copy.deepcopy(cb.state())) for cb in self._stateful_callbacks()]
        scaler = self.accelerator.scaler
        self._scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())
        self._chain = chain

    # --- the host's entry points ---

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run the chain. ``self.model`` is M_T when it returns.

        Returns:
            The host's output of the last step.
        """
        assert self._chain is not None, "attach() comes before train()"
        assert not resume_from_checkpoint, "refused when the config was read"
        run = self._chain.run
        run_steps(self._chain.plan, self, run, on_progress=lambda: report.write_report(run))
        self.args: AxolotlDPOConfig = (
            self._host_args
        )  # the host saves the final model, its card and the hub push by these
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

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """See ``StepHost``. Batches have the size of training batches, so that what trains also scores."""
        dataset = self._data(step).train
        return score(self, dataset, self.args.per_device_train_batch_size, step.reference, f"D_{step.index}")

    def score_heldout(self, model: str) -> dict[str, ReferenceTable]:
        """See ``StepHost``."""
        assert self._chain is not None
        size = self.args.per_device_eval_batch_size
        return {name: score(self, rows, size, model, f"held-out {name}") for name, rows in self._chain.heldout.items()}

    def train_step(
        self, step: StepPlan, reference: ReferenceTable, heldout: Mapping[str, ReferenceTable]
    ) -> TrainOutcome:
        """See ``StepHost``: everything that a separate run would begin with is begun afresh, but the weights."""
        assert self._chain is not None
        distributed.release(self)
        data = self._data(step)
        self.args = step_args(
            self._host_args, data.cfg, data.total_num_steps, bool(data.heldout), self._chain.run.step(step)
        )
        self.beta, self.label_smoothing = self.args.beta, self.args.label_smoothing
        self.loss_types = self.args.loss_type
        self.loss_weights = self.args.loss_weights or [1.0] * len(self.loss_types)
        self.train_dataset = with_reference(data.train, reference)
        self.eval_dataset = together(
            [with_reference(self._chain.heldout[name], heldout[name]) for name in data.heldout]
        )
        self._restart_counters()
        self._updates_before = sum(s.num_optimizer_steps for s in self._chain.plan.steps[: step.index - 1])
        self._progress.step, self._progress.num_steps = step, len(self._chain.plan.steps)
        self._step, self._first_loss = step, None
        set_seed(self.args.seed)  # a separate run seeds when its trainer is built, and draws nothing before it trains
        try:
            self._output = super().train()
        finally:
            self._step = None
        assert self._first_loss is not None
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutcome(self._first_loss, losses[-1], self.state.global_step)

    def export_step(self, step: StepPlan, directory: Path) -> None:
        """See ``StepHost``: weights (or adapter) and tokenizer as the host saves them."""
        self.save_model(str(directory), _internal_call=True)  # internal: no push to the hub for every step
        self.accelerator.wait_for_everyone()

    def on_rank_0(self, action: Callable[[], None]) -> None:
        """See ``StepHost``."""
        distributed.on_rank_0(action)

    # --- inside ---

    def _data(self, step: StepPlan) -> StepData:
        assert self._chain is not None
        return self._chain.steps[step.index - 1]

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
        plain = self.loss_types == ["sigmoid"] and self.loss_weights == [1.0]
        gate.check_start(
            step=step.name,
            loss=self._first_loss,
            margin=self._metrics["train"]["rewards/margins"][-1],
            beta=self.beta,
            tolerance=gate.tolerance_nats(self._half_precision(), inputs["input_ids"].shape[1]),
            expected_loss=math.log(2) if plain and not self.use_weighting and not self.aux_loss_enabled else None,
        )

    def _half_precision(self) -> bool:
        half = {torch.bfloat16, torch.float16}
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        return bool(self.args.bf16 or self.args.fp16 or self.args.tf32 or dtypes & half)


def disable_functional_dropout(model: torch.nn.Module) -> None:
    """Finish what TRL's ``disable_dropout`` begins: it sets `nn.Dropout` modules to 0, but OPT, BLOOM, Llama's
    attention and others keep a probability as an attribute and call ``F.dropout``. With it on, a step would not begin
    at its reference."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def tokenize_chain(
    trainer: StepwiseDPOTrainer, steps: Sequence[StepData]
) -> tuple[list[StepData], dict[str, Dataset], list[str]]:
    """Tokenize all steps and held-out sets before the first one trains, so that bad data ends the run early.

    Returns:
        The steps with tokenized D_t, the held-out sets by name, and the digest of each D_t.
    """
    tokenized, heldout, digests = [], {}, []
    for index, step in enumerate(steps):
        train = trainer.train_dataset if index == 0 else step.train
        train = trainer.prepare(train, f"D_{index + 1}")
        tokenized.append(StepData(**{**vars(step), "train": train}))
        digests.append(rows_of(train)[0])
        for name, rows in step.heldout.items():
            if name not in heldout:
                heldout[name] = trainer.prepare(rows, f"held-out {name}")
    return tokenized, heldout, digests
