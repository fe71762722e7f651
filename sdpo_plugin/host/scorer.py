"""The half of the trainer that has models score: the policy as it stands, M_{t-1} as exported, an external one."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from sdpo_plugin.host import distributed
from sdpo_plugin.host.chain import Chain
from sdpo_plugin.host.checkpoints import SealedCheckpoints
from sdpo_plugin.host.datasets import StepData
from sdpo_plugin.host.external import free_memory, load_reference
from sdpo_plugin.host.pool import Layout, needs_scores
from sdpo_plugin.host.positions import check_positions
from sdpo_plugin.host.scoring import score
from sdpo_plugin.host.stopping import Stopped
from sdpo_plugin.host.weights import Snapshot, load_adapter
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.resume import M_0, model_dir
from sdpo_plugin.runner import EarlyTables
from sdpo_plugin.tables import read_table, save_table

LOG = logging.getLogger("axolotl.sdpo_plugin")
T = TypeVar("T")
SHOWN_LETTERS = 80


class ScoringTrainer(SealedCheckpoints):
    """What of a ``StepHost`` needs no training: reference passes, and which weights the policy has for them."""

    _attached: Chain | None = None
    _layout: Layout | None = None
    _base: Snapshot | None = None  # M_0, with `policy_init: base`
    _stand_in: torch.nn.Module | None = None  # M_{t-1}, where the policy in memory is M_0 already

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
        check_positions(self, chain.sources, chain.heldout, model, f"sdpo.reference: {chain.block.reference!r}")
        tables += [(step, self._score_data(step, name, model)) for step in plan.steps]
        heldout = self._score_heldout(name, model)
        del model
        free_memory()
        return EarlyTables(tables, {name: heldout})

    def score_step(self, step: StepPlan) -> ReferenceTable:
        """See ``StepHost``."""
        return self._score_data(step, model_name(step.index - 1), self._stand_in)

    def score_heldout(self, model: str) -> dict[str, ReferenceTable]:
        """See ``StepHost``."""
        return self._score_heldout(model, self._stand_in)

    def load_policy(self, model: str, directory: Path) -> None:
        """See ``StepHost``. A full model has been loaded by the host, from ``directory`` instead of the base's."""
        chain = self._chain
        if chain.cfg.adapter:
            load_adapter(self.model, directory)
        elif not chain.session.is_redirected:  # policy_init: base; M_{t-1} only scores
            self._stand_in = load_reference(chain.cfg, str(directory), self)

    def restart_policy(self) -> None:
        """See ``StepHost``."""
        assert self._base is not None
        if self._stand_in is not None:
            self._stand_in = None
            free_memory()
        distributed.release(self)
        self._base.restore(self.model)

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """See ``StepHost``."""
        return distributed.on_rank_0(action)

    @property
    def _chain(self) -> Chain:
        assert self._attached is not None, "attach() comes before train()"
        return self._attached

    @property
    def _data(self) -> Layout:
        assert self._layout is not None
        return self._layout

    def _keep_base(self) -> None:
        """`policy_init: base`: a copy of M_0, while there are steps to train from it."""
        chain, start = self._chain, self._chain.session.start
        if chain.block.policy_init != "base" or start.action.kind in ("finish", "save"):
            return
        if start.ledger is not None and M_0 in start.ledger.exports:
            directory = self.on_rank_0(partial(model_dir, chain.run, start.ledger, M_0))
            assert directory is not None
            load_adapter(self.model, directory)
        self._base = Snapshot(self.model)
        sizes = ", ".join(f"{size:,}" for size in distributed.gather([self._base.num_bytes]))
        if self.accelerator.is_main_process:
            LOG.info("policy_init: base: a copy of M_0 stays in main memory, bytes on each rank: %s", sizes)

    def _pool_scores(self) -> dict[Path, ReferenceTable]:
        """Log-probs of each source under M_0 where they lay out the steps, on disk before there is a plan."""
        chain, ledger = self._chain, self._chain.session.start.ledger
        if not needs_scores(chain.block):
            return {}
        paths = {chain.run.pool(number): number for number in range(1, len(chain.sources) + 1)}
        if ledger is not None:
            return {path: self.on_rank_0(partial(read_table, chain.run, ledger, path)) for path in paths}
        tables = {}
        for path, number in paths.items():
            source = chain.sources[number - 1]
            table = self._score(source, M_0, f"source {number}", None, partial("row {1} of {0}".format, source.name))
            self.on_rank_0(partial(save_table, table, path))
            tables[path] = table
        return tables

    def _score(
        self,
        data: StepData,
        name: str,
        what: str,
        model: torch.nn.Module | None = None,
        name_row: Callable[[int], str] | None = None,
    ) -> ReferenceTable:
        """Batches have the size of training batches, so that what trains also scores."""
        size = self.args.per_device_train_batch_size
        return score(self, data.train, size, name, what, model, data.facts, name_row, self._end_if_asked)

    def _score_data(self, step: StepPlan, name: str, model: torch.nn.Module | None = None) -> ReferenceTable:
        return self._score(
            self._data.steps[step.index - 1], name, f"D_{step.index}", model, partial(self._name_row, step)
        )

    def _score_heldout(self, model: str, other: torch.nn.Module | None = None) -> dict[str, ReferenceTable]:
        size = self.args.per_device_eval_batch_size
        return {
            name: score(self, rows, size, model, f"held-out {name}", other, check=self._end_if_asked)
            for name, rows in self._chain.heldout.items()
        }

    def _name_row(self, step: StepPlan, row: int) -> str:
        """The row's place, and how its prompt begins: sources are shuffled and filtered before they are numbered."""
        ids = self._data.steps[step.index - 1].train[row]["prompt_ids"]
        text = " ".join(self.processing_class.decode(ids, skip_special_tokens=True).split())
        return f"{step.name_row(row)}, which begins {text[:SHOWN_LETTERS]!r}"

    def _end_if_asked(self) -> None:
        """Between two batches of a reference pass: what it has scored so far is not kept."""
        assert self._stop is not None
        signum = self._stop.agreed()
        if signum:
            raise Stopped(signum, "the reference pass under way will be made again")
