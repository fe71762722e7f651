"""The reference passes of a run: with batches as training has them, and an end where the run is asked to stop."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedModel

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.host.data.columns import row_facts
from sdpo_plugin.host.data.heldout import heldout_cfgs
from sdpo_plugin.host.data.layout import Layout, StepData, describe_row
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.forward.attention import takes_packed_rows
from sdpo_plugin.host.forward.log_probs import compute_as_in, packs
from sdpo_plugin.host.forward.table import log_prob_table
from sdpo_plugin.host.stopping import Stopped, StopRequest
from sdpo_plugin.order import Int
from sdpo_plugin.plan import StepPlan
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.sampling import sample
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

LOG = logging.getLogger("axolotl.sdpo_plugin")
# Name of the model, facts of the rows, name of the data set, how the pass is made, and what makes it.
Cached = Callable[[str, RowFacts, str, Mapping[str, Any], Callable[[], LogProbTable]], LogProbTable]


class Passes:
    """Fills tables of log-probs.

    Args:
        trainer: holds the policy.
        stop: whether the run has been asked to stop; a table that is half made then is not kept.
        cached: gives a table that another run has made, or makes it.
    """

    def __init__(self, trainer: "DPOTrainer", stop: StopRequest, cached: Cached) -> None:
        self._trainer, self.stop, self._cached = trainer, stop, cached

    @property
    def are_packed(self) -> bool:
        """Whether they compute packed rows, as training does."""
        return packs(self._trainer)

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
        return self._made(data.cfg, data.train, data.cfg.micro_batch_size, model, what, other, data.facts, name_row)

    def _made(
        self,
        cfg: DictDefault,
        rows: Dataset,
        size: int,
        model: str,
        what: str,
        other: PreTrainedModel | None,
        facts: RowFacts,
        name_row: Callable[[int], str] | None = None,
    ) -> LogProbTable:
        """As ``log_prob_table`` makes it under the config of a step, or an earlier run has."""
        compute_as_in(self._trainer, cfg)
        make = partial(log_prob_table, self._trainer, rows, size, model, what, other, facts, name_row)
        is_packed = self.are_packed and (other is None or takes_packed_rows(other))
        of_step = {"sequence_len": cfg.sequence_len, "dpo_ld_alpha": cfg.dpo_ld_alpha}
        settings = {"batch size": size, "packed": is_packed, **of_step}
        return self._cached(model, facts, what, settings, lambda: make(self.end_if_asked))

    def heldout_tables(
        self, layout: Layout, names: Sequence[str], model: str, other: PreTrainedModel | None = None
    ) -> dict[str, LogProbTable]:
        """Log-probs of these held-out sets, by name, in batches of the evaluation's size.

        Raises:
            ReferenceTableError, Stopped: as in ``step_table``.
        """
        tables, cfgs = {}, heldout_cfgs(layout.steps)
        for name in names:
            rows, what, size = layout.heldout[name], f"held-out {name}", cfgs[name].eval_batch_size
            tables[name] = self._made(cfgs[name], rows, size, model, what, other, row_facts(rows))
        return tables

    def sampled_tables(
        self, layout: Layout, steps: Sequence[StepPlan], model: str, other: PreTrainedModel | None = None
    ) -> dict[int, LogProbTable]:
        """Log-probs of the rows of D_j that the plan's diagnostics draw, by j.

        For the report alone: a table with a number that is not finite is left out, and said.

        Raises:
            Stopped: the run was asked to stop.
        """
        tables = {}
        for step in steps:
            drawn, data = sample(step, **layout.plan.diagnostics), layout.data(step)
            size = data.cfg.micro_batch_size
            rows, facts = data.train.select(drawn.rows), data.facts.take(drawn.rows)
            what = f"{len(drawn.rows):,} rows of D_{step.index}"
            try:
                table = self._made(data.cfg, rows, size, model, what, other, facts)
            except ReferenceTableError as error:  # every rank has the same numbers
                if self._trainer.accelerator.is_main_process:
                    LOG.warning("the report will miss log-probs of D_%d under %s: %s", step.index, model, error)
                continue
            tables[step.index] = replace(table, rows_digest=drawn.digest)
        return tables

    def refreshed_table(
        self, step: StepPlan, data: StepData, check: Callable[[], None], rows: Int, update: int
    ) -> LogProbTable:
        """Log-probs of some rows of D_t by the policy between two updates of its training.

        Args:
            step: t.
            data: D_t.
            check: called by every rank before every round of batches.
            rows: their numbers.
            update: updates that were made.

        Raises:
            ReferenceTableError: a log-prob is not finite.
        """
        size, facts = self._trainer.args.per_device_train_batch_size, data.facts.take(rows)
        what, model = f"{len(rows):,} rows of D_{step.index}", f"the policy at update {update:,} of {step.name}"

        def name_row(number: int) -> str:
            return describe_row(self._trainer.processing_class, step, data, int(rows[number]))

        own = data.train.select(rows)
        return log_prob_table(self._trainer, own, size, model, what, None, facts, name_row, check, trains=True)

    def end_if_asked(self, under_way: str = "the reference pass") -> None:
        """Every rank asks, between two batches.

        Raises:
            Stopped: the run was asked to stop; it says what is under way and will be made again.
        """
        signum = self.stop.agreed()
        if signum:
            raise Stopped(signum, f"{under_way} under way will be made again")
