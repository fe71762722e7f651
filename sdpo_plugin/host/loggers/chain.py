"""The loggers of a chain: one run of each, that begins with the first step and ends with the last.

transformers' callbacks take the trainer's count of updates, which begins at 0 in each step, and close when a step is
over. While the chain runs they stand behind one callback, which shows them the chain as if it were one training:
updates since M_0, one beginning, one end. So every axis of every logger goes on, and no library is touched.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from sdpo_plugin.host.loggers.logger import Chain, Logger, Rows
from sdpo_plugin.host.loggers.parameters import step_parameters
from sdpo_plugin.host.loggers.reporting import logger_of
from sdpo_plugin.host.loggers.runs import begin_runs
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.stopping import Stopped
from sdpo_plugin.measures import gamma_stats
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.report.logged import Logged
from sdpo_plugin.run_dir.resume import Start

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer

# What a callback is given with every event.
GIVEN = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
STEP, UPDATE = "sdpo/step", "sdpo/global_step"
EVENTS = (
    *("on_epoch_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_substep_end", "on_step_end"),
    *("on_epoch_end", "on_evaluate", "on_predict", "on_prediction_step", "on_log", "on_push_begin"),
)


class ChainLoggers(TrainerCallback):  # type: ignore[misc]  # the host ships no types
    """Stands for the callbacks that report, while the chain runs.

    Args:
        trainer: whose callbacks they are.
        setup: config and run directory, and where the run is resumed.
        plan: the steps.
        args_of: the training arguments of a step.
    """

    def __init__(
        self,
        trainer: "StepwiseDPOTrainer",
        setup: RunSetup,
        plan: Plan,
        args_of: Callable[[StepPlan], Any],
    ) -> None:
        steps_done, updates_done, begins_at = _place(setup.session.start, plan)
        total = sum(step.num_optimizer_steps for step in plan.steps)
        chain = Chain(setup.cfg, setup.run.root, begins_at)
        made = [(callback, logger_of(callback, chain)) for callback in trainer.callback_handler.callbacks]
        self._loggers = [logger for _, logger in made if logger is not None]
        self._trainer, self._run, self._plan, self._args_of = trainer, setup.run, plan, args_of
        self._args: Any = copy.copy(trainer.args)
        self._args.max_steps = total
        self._at = (steps_done, updates_done)  # the step, and updates since M_0
        self._has_begun = False

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Take the places of the callbacks that report, while the chain runs; end their runs with it."""
        if not self._loggers:
            yield
            return
        callbacks, taken = self._trainer.callback_handler.callbacks, [logger.callback for logger in self._loggers]
        whole = list(callbacks)
        first = whole.index(taken[0])
        left = [other for other in whole if other not in taken]
        callbacks[:] = [*left[:first], self, *left[first:]]  # nothing before the first one is taken
        try:
            yield
        except BaseException as error:
            self._interrupt(failed=not isinstance(error, Stopped))
            raise
        else:
            self._end()
        finally:
            at = callbacks.index(self)
            callbacks[at : at + 1] = taken

    # --- what a step has to say beside the host's events ---

    def log(self, values: Mapping[str, float]) -> None:
        """Log values where the chain stands: after the updates that are made. Every rank may call it.

        Args:
            values: by name, e.g. "sdpo/kl_to_base"; loggers but MLflow put "train/" before it, as before all that is
                no evaluation's.
        """
        self.begin()
        self._send("on_log", self._args, logs={**values, STEP: self._at[0], UPDATE: self._at[1]}, **self._given())

    def log_table(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        """Log a table where the chain stands, in loggers that have tables: W&B, MLflow, Trackio, Comet; TensorBoard as
        text. Rank 0 does.

        Args:
            name: of the table, e.g. "sdpo/gamma".
            columns: names of the columns.
            rows: of cells: numbers, text, or None.
        """
        self._tell("a table", lambda logger: logger.table(name, columns, rows, self._at[1]))

    def log_image(self, name: str, path: Path) -> None:
        """Log a picture where the chain stands, in the same loggers. Rank 0 does.

        Args:
            name: of the picture, e.g. "sdpo/gamma_ref".
            path: a PNG.
        """
        self._tell("a picture", lambda logger: logger.image(name, path, self._at[1]))

    def log_report(self, logged: Logged) -> None:
        """Log what a report says of the model that has just been looked at. Every rank calls it."""
        if logged.values and self._loggers:
            self.log(logged.values)
            for name, rows in logged.tables.items():
                self.log_table(name, logged.columns, rows)
            for path in logged.pictures:
                self.log_image(f"sdpo/{path.stem}", path)

    # --- the run of each logger ---

    def begin(self) -> None:
        """Begin the run of each logger, or go on in that of the process before; once in this one.

        A logger that cannot begin ends the run, as under the host: its user asked for it, and nothing is trained yet.
        """
        if self._has_begun:
            return
        self._has_begun = True
        begin_runs(
            self._loggers if self._trainer.state.is_world_process_zero else [],
            self._run,
            lambda: self._send("on_train_begin", self._args, **self._given()),
            lambda: step_parameters(self._plan, self._args_of),
        )

    def _end(self) -> None:
        if self._has_begun:
            self._send("on_train_end", self._args, **self._given())

    def _interrupt(self, *, failed: bool) -> None:
        for logger in self._loggers if self._has_begun else []:
            end = partial(self._call, logger, "on_train_end", self._args, self._state(), **self._given())
            logger.harmless("its end", partial(logger.interrupted, failed=failed, end=end), None)

    # --- the host's events ---

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step begins to train: γ_ref, the mean γ of D_t under its reference (arXiv 2403.19270, Figure 2)."""
        step = self._trainer.step
        assert step is not None, "while the chain runs, it is a step that trains"
        self._at = (step.plan.index, step.updates_before + state.global_step)
        self.begin()
        if step.training.checkpoint is None:
            gamma = gamma_stats(step.training.reference)
            self.log({"sdpo/gamma_ref": gamma.mean, "sdpo/gamma_ref_per_token": gamma.per_token_mean})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is found by the step's own count, in the step's own directory."""
        self._send("on_save", args, state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step has ended, and the chain has not."""

    def _forward(self, event: str, state: Any, **kwargs: Any) -> None:
        step = self._trainer.step
        if step is not None:
            self._at = (step.plan.index, step.updates_before + state.global_step)
        self._send(event, self._args, **kwargs)

    def _send(self, event: str, args: Any, state: Any = None, **kwargs: Any) -> None:
        state = state or self._state()
        for logger in self._loggers:
            call = partial(self._call, logger, event, args, state, **kwargs)
            if event == "on_train_begin":
                call()
            else:
                logger.harmless(event, call, None)

    def _call(self, logger: Logger, event: str, args: Any, state: Any, **kwargs: Any) -> None:
        if event == "on_log":
            logs = {key: value for key, value in kwargs["logs"].items() if not logger.has(key, state.global_step)}
            if not logs.keys() - {STEP, UPDATE, "epoch"}:
                return
            kwargs["logs"] = logs
        getattr(logger.callback, event)(logger.args(args), state, self._trainer.control, **kwargs)

    def _state(self) -> Any:
        """The trainer's state, with the updates of the chain."""
        state = copy.copy(self._trainer.state)
        state.global_step, state.max_steps = self._at[1], self._args.max_steps
        return state

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self._trainer.callback_handler, name) for name in GIVEN}

    def _tell(self, what: str, tell: Callable[[Logger], None]) -> None:
        self.begin()
        if self._trainer.state.is_world_process_zero:
            for logger in self._loggers:
                logger.harmless(what, partial(tell, logger), None)


def _place(start: Start, plan: Plan) -> tuple[int, int, int]:
    """Steps that are done, their updates, and those with the ones of the checkpoint that is resumed."""
    done = [] if start.ledger is None else [record for record in start.ledger.records if record.state == "exported"]
    updates = sum(step.num_optimizer_steps for step in plan.steps[: len(done)])
    if start.checkpoint is None:
        return len(done), updates, updates
    state = TrainerState.load_from_json(str(start.checkpoint / TRAINER_STATE_NAME))
    return len(done), updates, updates + int(state.global_step)


def _forwarding(event: str) -> Callable[..., None]:
    def forward(self: ChainLoggers, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forward(event, state, **kwargs)

    return forward


for _event in EVENTS:
    setattr(ChainLoggers, _event, _forwarding(_event))
