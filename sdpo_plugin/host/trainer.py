"""The host's DPO trainer with what a chain of steps overrides; ``step_host.py`` runs the steps."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import TrainerControl, set_seed
from transformers.trainer_utils import TrainOutput

from sdpo_plugin.host.checkpoints import (
    StopAtUpdate,
    directory_of_step,
    leave_evaluation,
    load_whole_adapter,
    look_in_run_directory,
    make_owed_evaluation,
    restore_callbacks,
    save_sealed,
    wait_for_weights,
)
from sdpo_plugin.host.data.columns import REFERENCE, with_reference
from sdpo_plugin.host.data.tokenized import token_ids
from sdpo_plugin.host.engines.dropout import disable_other_noise
from sdpo_plugin.host.engines.engine import require_usable_engine, set_engine_batch
from sdpo_plugin.host.forward.log_probs import compute_as, taking, with_all_tokens
from sdpo_plugin.host.forward.table import log_prob_table
from sdpo_plugin.host.initial_state import InitialState
from sdpo_plugin.host.model_card import ModelCards
from sdpo_plugin.host.progress import StepProgress
from sdpo_plugin.host.refreshing import after_update, before_updates, see_order
from sdpo_plugin.host.start_gate import check_loss
from sdpo_plugin.host.step_under_way import EvaluationLeft, StepUnderWay
from sdpo_plugin.host.workers import shielded

if TYPE_CHECKING:
    from sdpo_plugin.host.loggers.chain import ChainLoggers


class StepwiseDPOTrainer(AxolotlDPOTrainer):  # type: ignore[misc]  # the host ships no types
    """Axolotl's DPO trainer for `rl: sdpo`. Its ``train()`` runs the chain, each step of it the host's own ``train()``.

    Model load, final save, model card, hub push and teardown stay the host's.

    Attributes:
        step: the step that is being trained; None outside of ``run_host_training``.
        loggers: of the chain, while it runs: for what is logged beside the host's own points.
        padded_collator: TRL's, which pads; ``data_collator`` may pack.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "dpo", "stepwise-dpo"]
    step: StepUnderWay | None = None
    loggers: "ChainLoggers"
    control: TrainerControl  # the host's
    _is_built = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_built = True
        self.padded_collator = self.data_collator  # TRL's; forward/packed.py may put another one in its place
        if self.args.disable_dropout:
            disable_other_noise(self.model)
        self.add_callback(StopAtUpdate(self))

    def attach(self, chain: Callable[[], TrainOutput], cfg: DictDefault, written: Mapping[str, Any]) -> None:
        """Hand over the chain that ``train()`` runs, and the config for model cards, also as the user wrote it.

        Raises:
            ConfigError: a chain cannot be run under this DeepSpeed or FSDP, or with a model on several GPUs.
        """
        require_usable_engine(self)
        look_in_run_directory(self)
        self._cards = ModelCards.of(cfg, written)
        self.add_callback(StepProgress(self, self._cards.run))
        self._initial_state = InitialState(self)
        self.chain = chain

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run the chain, or what is left of it. ``self.model`` is M_T when it returns.

        Args:
            resume_from_checkpoint: not looked at: the ledger says where the chain is resumed.
            kwargs: the host's others; a chain has no use for them.

        Returns:
            The host's output of the last step.

        Raises:
            ConfigError: a step is resumed with other hyper-parameters than it began with.
        """
        return self.chain()

    def run_host_training(
        self, step: StepUnderWay, args: AxolotlDPOConfig, train: Dataset, heldout: Dataset | None
    ) -> TrainOutput:
        """The host's ``train()`` on D_t, which begins as a separate run would, but for the weights.

        Args:
            step: what begins and ends with it.
            args: of the step.
            train: D_t with its reference log-probs.
            heldout: rows to evaluate on, likewise.

        Raises:
            EvaluationLeft: the run was asked to stop in an evaluation before the first update.
        """
        self.args = args
        self.beta, self.label_smoothing = args.beta, args.label_smoothing
        self.loss_types = args.loss_type
        self.loss_weights = args.loss_weights or [1.0] * len(self.loss_types)
        compute_as(self, args.max_length, args.ld_alpha)
        self._train_batch_size = args.train_batch_size
        set_engine_batch(self, args)
        self.train_dataset, self.eval_dataset = train, heldout
        self._initial_state.restore(self)
        set_seed(args.seed)  # a separate run seeds when its trainer is built, and draws nothing before it trains
        checkpoint = step.training.checkpoint
        # The evaluation at the start is made already; early stopping would count it a second time.
        args.eval_on_start = args.eval_on_start and checkpoint is None
        self.step = step
        try:
            with directory_of_step(Path(args.output_dir)):
                return super().train(None if checkpoint is None else str(checkpoint))
        finally:
            self.step = None

    # --- data ---

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """TRL's tokenization, which in 1.9 tokenizes again what its constructor has tokenized.

        The constructor sees one step's data; all of them are tokenized by name when it is done.
        """
        if not self._is_built:
            return dataset
        return token_ids(super()._prepare_dataset, dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """In the constructor nothing is computed yet; `axolotl evaluate` has the policy as its own reference."""
        if not self._is_built:
            return dataset
        return with_reference(dataset, log_prob_table(self, dataset, batch_size, "the model", name))

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The host's, which under DeepSpeed rounds every number to the dtype of the model: of log-probs of hundreds of
        nats in bfloat16, whole nats are left."""
        prepared = super()._prepare_inputs(inputs)
        exact = {key: inputs[key].to(prepared[key].device) for key in REFERENCE if key in inputs}
        return {**prepared, **exact}

    def get_train_dataloader(self) -> Any:
        """The host's, with workers that outlive a signal to the process group."""
        if self.step is not None and self.step.moving is not None:
            see_order(self, self.step.moving, super().get_train_dataloader)
        return shielded(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The host's, for evaluations, with such workers."""
        return shielded(super().get_eval_dataloader(eval_dataset))

    # --- training ---

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The host's loss; the first one of a step, and after a refresh, goes through the ln 2 gate."""
        step = self.step if self.model.training else None
        moving = None if step is None else step.moving
        inputs = inputs if moving is None else moving.filled(inputs)
        shows = return_outputs or (moving is not None and moving.is_watched)
        result = super().compute_loss(taking(model, inputs), inputs, shows, num_items_in_batch)
        loss = result[0] if shows else result
        if step is not None:
            check_loss(self, step, model, loss, inputs)
        if moving is not None and moving.is_watched:
            moving.see(self, result[1], inputs)
        return result if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's training step. The host's collects garbage after every micro-batch, which costs more than a small
        model's update; `gc_steps` and `torch_empty_cache_steps` do the same as often as the user wants."""
        loss: torch.Tensor = super(AxolotlDPOTrainer, self).training_step(model, inputs, num_items_in_batch)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """The host's count, over all tokens of a packed batch."""
        return int(super().floating_point_ops(with_all_tokens(inputs)))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Likewise."""
        super()._track_num_input_tokens(with_all_tokens(inputs))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Every logged point says its step, and counts updates over the whole chain: `global_step` restarts."""
        if self.step is not None:
            updates = self.step.updates_before + self.state.global_step
            logs |= {"sdpo/step": self.step.plan.index, "sdpo/global_step": updates}
        super().log(logs, start_time)

    # --- checkpoints and evaluations ---

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> None:
        """The host's checkpoint, sealed."""
        save = partial(super()._save_checkpoint, model, trial, **kwargs)
        if self.step is None:
            save()
        else:
            save_sealed(self, self.step, save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The host's, and the whole of an adapter that FSDP2 has sharded."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_whole_adapter(self, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """The host's, likewise."""
        super()._load_best_model()
        load_whole_adapter(self, Path(self.state.best_model_checkpoint))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The host's, with the card of a step's model or checkpoint; PEFT has written its own beside an adapter."""
        super().save_model(output_dir, _internal_call)
        wait_for_weights(self)
        self._write_card(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """This run's in the place of TRL's.

        Args:
            args, kwargs: a name and tags; TRL's own has no place for the data sets that Axolotl adds to a push.
        """
        self._write_card(None)

    def _write_card(self, directory: str | None) -> None:
        """No rank waits here for another: a push calls it on one of them alone."""
        if self.is_world_process_zero():
            self._cards.write(Path(directory or self.args.output_dir))

    def _load_callback_state(self) -> None:
        """The host's, and the state of callbacks, which it restores only on request."""
        super()._load_callback_state()
        if self.step is not None:
            restore_callbacks(self, self.step)

    def _run_epoch(self, model: Any, *args: Any, trial: Any = None, **kwargs: Any) -> None:
        """The host would make one more update before it noticed that early stopping had ended the step."""
        if self.step is not None:
            make_owed_evaluation(self, self.step, trial)
            if self.step.is_over or self.control.should_training_stop:
                self.control.should_training_stop = True
                return
            before_updates(self, self.step)
        super()._run_epoch(model, *args, trial=trial, **kwargs)

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        """A step that is resumed after its last update has no epoch left to run."""
        if self.step is not None:
            make_owed_evaluation(self, self.step, trial)
        return super()._finalize_training(trial, *args)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """A batch of an evaluation, unless the run has been asked to stop; every rank asks before every batch."""
        if self.step is not None:
            self.step.leave_evaluation_if_asked()
        return super().prediction_step(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """The host's, which evaluates before it saves; a run that has to stop leaves the evaluation and saves."""
        if self.step is not None:
            after_update(self, self.step)
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationLeft as left:
            assert self.step is not None, "only a step leaves an evaluation"
            leave_evaluation(self, self.step, left, model, trial)
