"""The reference passes of a run: with batches as training has them, and an end where the run is asked to stop."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PreTrainedModel

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.host.data.columns import row_facts
from sdpo_plugin.host.data.layout import Layout, StepData, describe_row
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.forward.log_probs import log_prob_table
from sdpo_plugin.host.stopping import Stopped, StopRequest
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.sampling import sample
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

LOG = logging.getLogger("axolotl.sdpo_plugin")


class Passes:
    """Fills tables of log-probs.

    Args:
        trainer: holds the policy.
        stop: whether the run has been asked to stop; a table that is half made then is not kept.
    """

    def __init__(self, trainer: "DPOTrainer", stop: StopRequest) -> None:
        self._trainer, self.stop = trainer, stop
        self._heldout_facts: dict[str, RowFacts] = {}  # every model of the run is evaluated on the same rows

    def step_table(
        self, step: StepPlan, data: StepData, model: str, other: PreTrainedModel | None = None
    ) -> LogProbTable:
        """Log-probs of D_t, in batches of the training's size: what fits into memory here also trains.

        Args:
            step: t.
            data: D_t.
            model: name of the model.
            other: a model in place of the policy.

        Raises:
            ReferenceTableError: a log-prob is not finite.
            Stopped: the run was asked to stop.
        """
        name_row = partial(describe_row, self._trainer.processing_class, step, data)
        return self._table(data, model, f"D_{step.index}", name_row, other)

    def left_table(
        self, step: StepPlan, data: StepData, model: str, other: PreTrainedModel | None = None
    ) -> LogProbTable:
        """Log-probs of what is left of the pool before step t, out of which its rows are picked, likewise.

        Raises:
            ReferenceTableError, Stopped: as in ``step_table``.
        """
        what = f"the {len(data.train):,} rows left for step {step.name}"
        return self._table(data, model, what, partial("row {1} of {0}".format, what), other)

    def source_table(self, source: TokenizedSource, model: str, what: str) -> LogProbTable:
        """Log-probs of a source, likewise.

        Raises:
            ReferenceTableError, Stopped: as in ``step_table``.
        """
        return self._table(source, model, what, partial("row {1} of {0}".format, source.name))

    def _table(
        self,
        data: StepData | TokenizedSource,
        model: str,
        what: str,
        name_row: Callable[[int], str],
        other: PreTrainedModel | None = None,
    ) -> LogProbTable:
        size = self._trainer.args.per_device_train_batch_size
        return log_prob_table(
            self._trainer, data.train, size, model, what, other, data.facts, name_row, self.end_if_asked
        )

    def heldout_tables(
        self, heldout: Mapping[str, Dataset], model: str, other: PreTrainedModel | None = None
    ) -> dict[str, LogProbTable]:
        """Log-probs of held-out sets, by name, in batches of the evaluation's size.

        Raises:
            ReferenceTableError, Stopped: as in ``step_table``.
        """
        size = self._trainer.args.per_device_eval_batch_size
        known, tables = self._heldout_facts, {}
        for name, rows in heldout.items():
            if name not in known:
                known[name] = row_facts(rows)
            what = f"held-out {name}"
            tables[name] = log_prob_table(
                self._trainer, rows, size, model, what, other, known[name], check=self.end_if_asked
            )
        return tables

    def sampled_tables(
        self, layout: Layout, steps: Sequence[StepPlan], model: str, other: PreTrainedModel | None = None
    ) -> dict[int, LogProbTable]:
        """Log-probs of the rows of D_j that the plan's diagnostics draw, by j.

        For the report alone: a table with a number that is not finite is left out, and said.

        Raises:
            Stopped: the run was asked to stop.
        """
        size, tables = self._trainer.args.per_device_train_batch_size, {}
        for step in steps:
            drawn, data = sample(step, **layout.plan.diagnostics), layout.data(step)
            rows, facts = data.train.select(drawn.rows), data.facts.take(drawn.rows)
            what = f"{len(drawn.rows):,} rows of D_{step.index}"
            try:
                table = log_prob_table(self._trainer, rows, size, model, what, other, facts, check=self.end_if_asked)
            except ReferenceTableError as error:  # every rank has the same numbers
                if self._trainer.accelerator.is_main_process:
                    LOG.warning("the report will miss log-probs of D_%d under %s: %s", step.index, model, error)
                continue
            tables[step.index] = replace(table, rows_digest=drawn.digest)
        return tables

    def end_if_asked(self, under_way: str = "the reference pass") -> None:
        """Every rank asks, between two batches.

        Raises:
            Stopped: the run was asked to stop; it says what is under way and will be made again.
        """
        signum = self.stop.agreed()
        if signum:
            raise Stopped(signum, f"{under_way} under way will be made again")
