"""The one writer of a run directory's records: rank 0 writes data first, then the ledger that vouches for them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdpo_plugin.plan import M_0, Plan, StepPlan, model_name
from sdpo_plugin.run_dir.checkpoints import about_checkpoint
from sdpo_plugin.run_dir.cleanup import sweep
from sdpo_plugin.run_dir.drift import require_same_steps
from sdpo_plugin.run_dir.files import explaining_write_errors, remove_folder, write_json
from sdpo_plugin.run_dir.fresh import require_own_places
from sdpo_plugin.run_dir.ledger import SCHEMA_VERSION, Hook, Ledger
from sdpo_plugin.run_dir.made_rows import MadeRows
from sdpo_plugin.run_dir.models import publish_model, seal_final_model
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.picked_rows import save_picked
from sdpo_plugin.run_dir.records import EXTERNAL, NONE, LookBack, Ranks, Records, Samples, Tables, require_rows
from sdpo_plugin.run_dir.stored import write_stored
from sdpo_plugin.run_dir.table_files import save_table
from sdpo_plugin.tables import LogProbTable

PLAN_SCHEMA_VERSION = 1


class Journal(Records):
    """The ledger of a run, in memory on every rank and on disk, with the tables and models that it vouches for.

    Args:
        run: where everything goes.
        ranks: of this run.
        plan: as it stands now; that of the ledger may have had other hyper-parameters.
        ledger: so far.

    Raises:
        ConfigError: the plan has other steps than the ledger.
        OutputError: a symbolic link stands where the run would write.
    """

    def __init__(self, run: RunDir, ranks: Ranks, plan: Plan, ledger: Ledger) -> None:
        require_same_steps([step.name for step in ledger.plan.steps], [step.name for step in plan.steps])
        to_train = [step.name for step, record in ledger.steps if record.state != "exported"]
        ranks.on_rank_0(lambda: require_own_places(run, to_train))
        # The ledger of a new run is rank 0's, for its random name.
        super().__init__(run, ranks, plan, ranks.on_rank_0(lambda: replace(ledger, plan=plan)))
        ranks.on_rank_0(lambda: remove_folder(run.staging))
        ranks.on_rank_0(lambda: sweep(run, self.ledger))
        ranks.on_rank_0(lambda: _write_plan(run, self.ledger))
        self._write()
        self._drop_superseded()

    def _save(self, files: Mapping[Path, LogProbTable]) -> None:
        """Write tables. The ledger vouches for them from its next record on."""

        def write() -> None:
            for path, table in files.items():
                save_table(table, path)

        self._ranks.on_rank_0(write)
        self.ledger = self.ledger.with_tables({self._run.key(path): table for path, table in files.items()})

    def _heldout_files(self, owner: str, tables: Tables) -> dict[Path, LogProbTable]:
        assert set(self.to_hold(owner)) <= set(tables)
        sets = enumerate(self._plan.heldout)
        return {self._run.heldout(owner, column): tables[name] for column, name in sets if name in tables}

    def _sampled_files(self, model: str, sampled: Samples) -> dict[Path, LogProbTable]:
        steps = self._plan.steps
        return {self._run.sample(model, steps[index - 1]): table for index, table in sampled.items()}

    def record_prepared(self, tables: Sequence[tuple[StepPlan, LogProbTable]], heldout: Mapping[str, Tables]) -> None:
        """Record what was computed before step 1.

        Args:
            tables: log-probs of D_t under the model that a table names, its reference or another one.
            heldout: log-probs of the held-out sets by an external reference, under its name; else empty.
        """
        self._save_early(tables, heldout)
        self._set(prepared=True)

    def record_early(self, tables: Sequence[tuple[StepPlan, LogProbTable]], heldout: Mapping[str, Tables]) -> None:
        """Record the same of steps that have come when the run grew."""
        self._save_early(tables, heldout)
        self._write()

    def record_look_back(self, back: LookBack, heldout: Tables, sampled: Samples) -> None:
        """Record what an earlier model says of what came when the run grew."""
        self._save(self._heldout_files(back.model, heldout) | self._sampled_files(back.model, sampled))
        self._write()

    def record_looked_back(self, step: StepPlan) -> None:
        """Record that no earlier model is left to ask of what came with this step."""
        lives = self.ledger.lives
        self._set(lives=tuple(replace(life, looked_back=life.looked_back or step.name in life.steps) for life in lives))

    def _save_early(self, tables: Sequence[tuple[StepPlan, LogProbTable]], heldout: Mapping[str, Tables]) -> None:
        files = {}
        for step, table in tables:
            is_reference = table.model == step.reference
            files[self._run.reference(step) if is_reference else self._run.log_probs(table.model, step)] = table
        for own in heldout.values():
            files |= self._heldout_files(EXTERNAL, own)
        self._save(files)

    def record_reference(
        self,
        step: StepPlan,
        table: LogProbTable | None,
        heldout: Tables,
        seconds: float,
        sampled: Samples = NONE,
        diagnostics_seconds: float = 0.0,
    ) -> None:
        """Record that a step can be trained.

        Args:
            step: the step.
            table: its reference table; None: it was made before step 1.
            heldout: log-probs of the held-out sets under M_{t-1}.
            seconds: that table and held-out tables took.
            sampled: log-probs of rows of D_j under M_{t-1}, for the report.
            diagnostics_seconds: that the samples took.

        Raises:
            ReferenceTableError: the table is of other rows.
        """
        files = {}
        if table is not None:
            require_rows(step, table)
            files[self._run.reference(step)] = table
        model = model_name(step.index - 1)
        self._save(files | self._heldout_files(model, heldout) | self._sampled_files(model, sampled))
        if table is None:  # and what it took where M_{t-1} has picked the rows
            seconds += self.ledger.records[step.index - 1].log_probs_seconds or 0.0
        self.record(step, state="referenced", log_probs_seconds=seconds, diagnostics_seconds=diagnostics_seconds)

    def record(self, step: StepPlan, **facts: Any) -> None:
        """Record facts of a step (see ``StepRecord``)."""
        self.ledger = self.ledger.record(step.index, **facts)
        self._write()

    def record_call(self, hook: Hook, step: StepPlan, made: MadeRows | None = None) -> None:
        """Record that a user's hook has come back, and the rows that it has made for the step."""
        if made is not None:
            key = self._run.key(self._run.made_rows_of(step.name))
            rows = {**self.ledger.identity.get("rows", {}), f"source {step.index}": dict(made.facts)}
            self.ledger = replace(
                self.ledger,
                plan=made.plan,
                identity={**self.ledger.identity, "rows": rows},
                made_rows={**self.ledger.made_rows, key: made.digest},
            )
            self._take(made.plan)
        self.record(step, called=(*self.ledger.records[step.index - 1].called, hook))

    def record_picked(
        self, step: StepPlan, plan: Plan, rows: NDArray[np.int64], tables: Sequence[LogProbTable], seconds: float
    ) -> None:
        """Record the rows that M_{t-1} has picked for the step, with its reference table.

        Args:
            step: t.
            plan: of the run, with these rows.
            rows: their numbers in the pool, ascending, shape (n,).
            tables: their log-probs by M_{t-1}, its reference, and by other models.
            seconds: that it took.

        Raises:
            ReferenceTableError: a table is of other rows.
        """
        ranked, path = plan.steps[step.index - 1], self._run.picked_rows(step)
        files = {}
        for table in tables:
            require_rows(ranked, table)
            is_reference = table.model == ranked.reference
            files[self._run.reference(step) if is_reference else self._run.log_probs(table.model, step)] = table
        digest = self._ranks.on_rank_0(lambda: save_picked(path, rows))
        self._save(files)
        self.ledger = replace(self.ledger, plan=plan, picked={**self.ledger.picked, self._run.key(path): digest})
        self._take(plan)
        self.record(step, log_probs_seconds=seconds)

    def _take(self, plan: Plan) -> None:
        """The plan has come to know more; the ledger has it already."""
        self._plan = plan
        self._ranks.on_rank_0(lambda: _write_plan(self._run, self.ledger))

    def about_checkpoint(self, step: StepPlan) -> dict[str, str]:
        """The text of the seal of each checkpoint of the step."""
        return about_checkpoint(self._run, self.ledger, step)

    @property
    def staging(self) -> Path:
        """The directory in which a model is written before it is published."""
        return self._run.staging

    def publish_base_adapter(self) -> None:
        """Give the adapter in the staging directory its place as M_0."""
        self._publish(M_0, self._run.base_adapter)

    def publish(self, step: StepPlan) -> None:
        """Give the model in the staging directory its place as M_t."""
        self._publish(model_name(step.index), self._run.step(step))

    def record_export(self, step: StepPlan, seconds: float) -> None:
        """Record that M_t stands, and remove the models that it supersedes, where only the last is kept."""
        self.record(step, state="exported", export_seconds=seconds)
        self._drop_superseded()

    def record_end(self, heldout: Tables, sampled: Samples = NONE, diagnostics_seconds: float = 0.0) -> None:
        """Record the end of the chain: log-probs under M_T of the held-out sets, and of rows of every D_j.

        The seconds of both samples, that before and that after it, are the last step's.
        """
        model, last = self.ledger.last_model, self.ledger.records[-1]
        self._save(self._heldout_files(model, heldout) | self._sampled_files(model, sampled))
        seconds = (last.diagnostics_seconds or 0.0) + diagnostics_seconds
        self.ledger = self.ledger.record(len(self.ledger.records), diagnostics_seconds=seconds)
        self._set(finished=True)

    def _publish(self, model: str, target: Path) -> None:
        with explaining_write_errors(target):
            known = self._ranks.written_by_all(self._run.staging)
        digest = self._ranks.on_rank_0(lambda: publish_model(self._run, self.ledger, model, target, known))
        self.ledger = replace(self.ledger, exports={**self.ledger.exports, model: digest})

    def _drop_superseded(self) -> None:
        """Remove every M_t but the last one, which alone resume may need: from the ledger, then from the disk."""
        if self._plan.export_steps == "all":
            return
        exported = [step for step in self._plan.steps if self.is_exported(step)]
        for step in exported[:-1]:
            self.ledger = self.ledger.record(step.index, kept=False)
        self._write()
        self._ranks.on_rank_0(lambda: sweep(self._run, self.ledger))

    def _set(self, **facts: Any) -> None:
        self.ledger = replace(self.ledger, **facts)
        self._write()

    def _write(self) -> None:
        self._ranks.on_rank_0(lambda: _write_ledger(self._run, self.ledger))


def close_run(run: RunDir, keep_last: bool) -> None:
    """Seal the final model, which the host has written, and record it; without ``keep_last`` its double, M_T, goes.

    For rank 0 alone, when there is no process group any more.

    Raises:
        OutputError: the ledger is damaged, or a file cannot be written.
        OSError: a file cannot be read.
    """
    ledger = Ledger.load(run.ledger)
    digest = seal_final_model(run, ledger)
    ledger = replace(ledger, saved=True, final=digest).record(len(ledger.records), kept=keep_last)
    _write_ledger(run, ledger)
    sweep(run, ledger)


def _write_ledger(run: RunDir, ledger: Ledger) -> None:
    with explaining_write_errors(run.ledger):
        write_stored(run.ledger, ledger, SCHEMA_VERSION)


def _write_plan(run: RunDir, ledger: Ledger) -> None:
    lives = [{"began": life.began, "steps": life.steps} for life in ledger.lives]
    with explaining_write_errors(run.plan):
        write_json(run.plan, {"schema_version": PLAN_SCHEMA_VERSION, **asdict(ledger.plan), "lives": lives})
