"""The ledger of a run: its plan, and what has been done of it. Resume trusts nothing else."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from sdpo_plugin.errors import OutputError
from sdpo_plugin.names import PathBelow
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.refresh import Refresh
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import read_stored
from sdpo_plugin.schema import STRICT, Count
from sdpo_plugin.tables import LogProbTable

SCHEMA_VERSION = 2
State = Literal["planned", "referenced", "training", "trained", "exported"]
Hook = Literal["before_step", "after_step"]


@dataclass(frozen=True)
class StepRecord:
    """The progress of one step.

    Attributes:
        state: the last thing that is finished and on disk; referenced: the reference table of D_t.
        first_loss: mean loss of the first batch, before the first update.
        final_loss: the last training loss that the host logged.
        num_optimizer_steps: updates made.
        beta: β of its loss.
        log_probs_seconds, diagnostics_seconds, train_seconds, export_seconds: wall time, without what a dead run lost.
        settings: the hyper-parameters that the step began to train with.
        kept: whether M_t is still there; `export_steps: last` keeps only the model that resume may need.
        called: the user's hooks that have been called for this step and have come back.
        refreshes: each time that its reference was made again.
        refresh_seconds: wall time of that, a part of ``train_seconds``; None where the reference does not move.
    """

    __pydantic_config__ = STRICT

    state: State = "planned"
    first_loss: float | None = None
    final_loss: float | None = None
    num_optimizer_steps: Count | None = None
    beta: float | None = None
    log_probs_seconds: float | None = None
    diagnostics_seconds: float | None = None
    train_seconds: float | None = None
    export_seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    kept: bool = True
    called: tuple[Hook, ...] = ()
    refreshes: tuple[Refresh, ...] = ()
    refresh_seconds: float | None = None


@dataclass(frozen=True)
class Life:
    """The beginning of a run, or its going on with steps that its config had not had.

    Attributes:
        began: when, in UTC (ISO 8601); None of a run that an earlier version of this package has begun.
        versions: of the packages that it began with.
        steps: names of the steps that it has brought.
        looked_back: what the models before these steps say of their rows is on disk, as far as it can be known.
    """

    __pydantic_config__ = STRICT

    began: str | None
    versions: dict[str, str]
    steps: tuple[str, ...]
    looked_back: bool = True

    @classmethod
    def begin(cls, steps: Iterable[str], identity: Mapping[str, Mapping[str, Any]], *, looked_back: bool) -> "Life":
        """A life that begins now, with the versions that an identity names."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(now, dict(identity.get("versions", {})), tuple(steps), looked_back)


@dataclass(frozen=True)
class Ledger:
    """The plan of a run with a record for each of its steps.

    Attributes:
        run_id: a random name, by which the files of another run are told apart.
        plan: the steps.
        identity: what must be the same when the run is resumed.
        records: one for each step.
        prepared: everything that is computed before step 1 is on disk.
        tables: digest of each table of log-probs, by its path.
        exports: digest of the seal of each model, "M_0" (an adapter) … "M_T"; none of one that its user has deleted.
        finished: all steps are trained, and the held-out log-probs of the last model are on disk.
        saved: the host has written the final model.
        final: digest of the final model's seal.
        made_rows: digest of each file of rows that `sdpo.before_step` has made, by its path.
        from_cache: the tables that were read from `sdpo.reference_cache`, by their paths.
        lives: the beginning of the run, and each time that it has grown by steps.
        picked: digest of each file of row numbers that a model has picked out of the pool, by its path.
    """

    __pydantic_config__ = STRICT

    run_id: str
    plan: Plan
    identity: dict[str, dict[str, Any]]
    records: tuple[StepRecord, ...]
    prepared: bool = False
    tables: dict[PathBelow, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    saved: bool = False
    final: str | None = None
    made_rows: dict[PathBelow, str] = field(default_factory=dict)
    from_cache: tuple[PathBelow, ...] = ()
    lives: tuple[Life, ...] = ()
    picked: dict[PathBelow, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, plan: Plan, identity: Mapping[str, Any], tables: Mapping[str, str] | None = None) -> "Ledger":
        """Nothing is done yet; ``tables`` are those that the plan was made with."""
        records = tuple(StepRecord() for _ in plan.steps)
        first = Life.begin((step.name for step in plan.steps), identity, looked_back=True)
        return cls(secrets.token_hex(8), plan, dict(identity), records, tables=dict(tables or {}), lives=(first,))

    def with_tables(self, tables: Mapping[str, LogProbTable]) -> "Ledger":
        """The ledger, which vouches for these tables too, by their paths."""
        digests = {key: table.digest() for key, table in tables.items()}
        kept = {key for key in self.from_cache if key not in tables}
        read = kept | {key for key, table in tables.items() if table.from_cache}
        return replace(self, tables=self.tables | digests, from_cache=tuple(sorted(read)))

    @property
    def steps(self) -> list[tuple[StepPlan, StepRecord]]:
        """Each step with its record."""
        return list(zip(self.plan.steps, self.records, strict=True))

    @property
    def last_model(self) -> str:
        """M_T."""
        return model_name(len(self.records))

    def record(self, index: int, **facts: Any) -> "Ledger":
        """A ledger in which step ``index`` (from 1) has these facts; the rest is as it was."""
        records = tuple(
            replace(record, **facts) if number == index else record for number, record in enumerate(self.records, 1)
        )
        return replace(self, records=records)

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read the ledger of a run.

        Raises:
            OutputError: the file is torn, changed or of another schema version.
        """
        try:
            ledger, _ = read_stored(path, cls, SCHEMA_VERSION)
            ledger._require_order()
            ledger._require_names()
            ledger._require_files()
            ledger._require_lives()
            return ledger
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path} is not a ledger of schema version {SCHEMA_VERSION} ({error}); "
                "restore it, or move the output directory away, or set another output_dir."
            ) from error

    def _require_order(self) -> None:
        """Steps are done one after the other: exported ones, at most one under way, planned ones."""
        states = [record.state for record in self.records]
        done = len(list(takewhile(lambda state: state == "exported", states)))
        in_turn = all(state == "planned" for state in states[done + 1 :])
        begun = states != ["planned"] * len(states)
        if not states or not in_turn or (begun and not self.prepared):
            raise ValueError(f"states in an order that no run takes: {states}, prepared: {self.prepared}")
        if (self.finished and done < len(states)) or (self.saved and not self.finished):
            raise ValueError(f"finished: {self.finished}, saved: {self.saved} with states {states}")

    def _require_names(self) -> None:
        """Each step has a record and a directory of its own, and begins at the model before it or at the base."""
        if len(self.plan.steps) != len(self.records):
            raise ValueError(f"{len(self.records)} records for {len(self.plan.steps)} steps")
        for step in self.plan.steps:
            if step.policy_init not in (model_name(0), model_name(step.index - 1)):
                raise ValueError(f"step {step.index} starts from {step.policy_init!r}")
        names = [step.name for step in self.plan.steps]
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"two steps have one name: {names}")

    def _require_files(self) -> None:
        """A step with a reference has its table, one that is exported its model."""
        layout, models = RunDir(Path()), [model_name(index) for index in range(len(self.records) + 1)]
        for step, record in self.steps:
            if record.state != "planned" and layout.reference(step).as_posix() not in self.tables:
                raise ValueError(f"step {step.name} is {record.state} and has no reference table")
            if record.state != "planned" and step.is_awaited:
                raise ValueError(f"step {step.name} is {record.state}, and its rows are not made")
            if record.state != "planned" and step.is_unranked:
                raise ValueError(f"step {step.name} is {record.state}, and its rows are not ranked")
            if step.is_unranked and layout.key(layout.picked_rows(step)) in self.picked:
                raise ValueError(f"step {step.name} has picked its rows, and they are not ranked")
            if record.state == "exported" and record.kept and model_name(step.index) not in self.exports:
                raise ValueError(f"step {step.name} is exported and has no digest of its model")
        exported = [(step, record) for step, record in self.steps if record.state == "exported"]
        for step, record in exported[-1:]:
            if not record.kept and not self.saved and model_name(step.index) in self.exports:
                raise ValueError(f"the model of step {step.name} is the last one, and to be removed")
        unknown = [model for model in self.exports if model not in models]
        if unknown:
            raise ValueError(f"it vouches for models that no step makes: {unknown}")
        steps = self.plan.steps
        unknown = sorted(set(self.made_rows) - {layout.key(layout.made_rows_of(step.name)) for step in steps})
        unknown += sorted(set(self.picked) - {layout.key(layout.picked_rows(step)) for step in steps})
        if unknown:
            raise ValueError(f"it vouches for rows of no step: {unknown}")

    def _require_lives(self) -> None:
        """Each step came with one life, in order. A ledger of an earlier version of this package has none."""
        brought = [name for life in self.lives for name in life.steps]
        names = [step.name for step in self.plan.steps]
        if self.lives and brought != names:
            raise ValueError(f"its lives have brought the steps {brought}, and it has {names}")
