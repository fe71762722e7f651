"""What a run has done so far, and where it keeps it: one record a step, written after the data it vouches for."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import fingerprint, write_json
from sdpo_plugin.names import PathBelow, StepName
from sdpo_plugin.plan import Plan, StepPlan, model_name
from sdpo_plugin.stored import STRICT, Count, checked, read_object

SCHEMA_VERSION = 1
State = Literal["planned", "scored", "training", "trained", "exported"]


@dataclass(frozen=True)
class StepRecord:
    """What one step has done.

    Attributes:
        state: the last thing that is finished and on disk.
        reference, policy_init: as in the plan.
        first_loss: mean loss of the first batch, before the first update.
        final_loss: the last training loss that the host logged.
        num_optimizer_steps: updates made.
        score_seconds, train_seconds, export_seconds: wall time, without what a dead run lost.
        settings: the hyper-parameters that the step began to train with.
        kept: whether M_t is still there; `export_steps: last` keeps only what a resumed run would need.
    """

    __pydantic_config__ = STRICT

    index: Count
    name: StepName
    reference: str
    policy_init: str
    state: State = "planned"
    first_loss: float | None = None
    final_loss: float | None = None
    num_optimizer_steps: Count | None = None
    score_seconds: float | None = None
    train_seconds: float | None = None
    export_seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    kept: bool = True


@dataclass(frozen=True)
class RunDir:
    """The layout of an output directory; every path that this package writes comes from here."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "sdpo" / "plan.json"

    @property
    def ledger(self) -> Path:
        return self.root / "sdpo" / "ledger.json"

    @property
    def lock(self) -> Path:
        return self.root / "sdpo" / "lock"

    @property
    def report(self) -> Path:
        return self.root / "sdpo" / "report.json"

    @property
    def start(self) -> Path:
        """M_0 where the base model alone does not make it: the adapter as it was initialised."""
        return self.root / "sdpo" / "start"

    @property
    def staging(self) -> Path:
        """Where a model is written before it gets its name."""
        return self.root / "sdpo" / "staging"

    @property
    def tables(self) -> tuple[Path, ...]:
        """The folders that hold tables of log-probs."""
        return tuple(self.root / "sdpo" / name for name in ("pool", "reference", "scores", "heldout"))

    def pool(self, number: int) -> Path:
        """The log-probs of source ``number`` (from 1) under M_0, where they lay out the steps."""
        return self.root / "sdpo" / "pool" / f"source-{number}.safetensors"

    def reference(self, step: StepPlan | StepRecord) -> Path:
        """The reference table of D_t."""
        return self.root / "sdpo" / "reference" / f"{step.name}.safetensors"

    def score(self, model: str, step: StepPlan) -> Path:
        """The log-probs of D_t under a model that is not its reference."""
        return self.root / "sdpo" / "scores" / f"{model}-{step.name}.safetensors"

    def heldout(self, model: str, column: int) -> Path:
        """The log-probs of held-out set number ``column`` (from 0) under M_t, or under "reference", an external one."""
        return self.root / "sdpo" / "heldout" / f"{model}-{column + 1}.safetensors"

    def step(self, step: StepPlan | StepRecord) -> Path:
        """M_t and the host's checkpoints of step t."""
        return self.root / step.name

    def key(self, path: Path) -> str:
        """How the ledger calls a file."""
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Ledger:
    """The records of all steps of one plan.

    Attributes:
        run: a random name; what another run has left is told by it.
        plan_fingerprint: of the plan as it stands.
        identity: what must be the same when the run goes on.
        prepared: everything that is scored before step 1 is on disk.
        tables: checksum of each table of log-probs, by its path.
        exports: digest of the seal of each model, "M_0" (an adapter) … "M_T"; none of one that its user has deleted.
        finished: all steps are trained and the last model is scored.
        saved: the host has written the final model.
        final: digest of the final model's seal.
    """

    __pydantic_config__ = STRICT

    run: str
    plan_fingerprint: str
    identity: dict[str, dict[str, Any]]
    steps: tuple[StepRecord, ...]
    prepared: bool = False
    tables: dict[PathBelow, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    saved: bool = False
    final: str | None = None

    @classmethod
    def begin(cls, plan: Plan, identity: Mapping[str, Any], tables: Mapping[str, str] | None = None) -> "Ledger":
        """Nothing is done yet; ``tables`` are those that the plan was made with."""
        steps = tuple(StepRecord(step.index, step.name, step.reference, step.policy_init) for step in plan.steps)
        return cls(secrets.token_hex(8), plan.fingerprint(), dict(identity), steps, tables=dict(tables or {}))

    def record(self, index: int, **facts: Any) -> "Ledger":
        """A ledger in which step ``index`` (from 1) has these facts; the rest is as it was."""
        steps = tuple(replace(step, **facts) if step.index == index else step for step in self.steps)
        return replace(self, steps=steps)

    def save(self, path: Path) -> None:
        """Write the ledger, atomically."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        write_json(path, {**content, "checksum": fingerprint(content)})

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read what ``save`` wrote.

        Raises:
            OutputError: the file is torn, changed or of another schema version.
        """
        try:
            value = read_object(path)
            checksum = value.pop("checksum")
            if value["schema_version"] != SCHEMA_VERSION:
                raise ValueError("another schema version")
            if fingerprint(value) != checksum:
                raise ValueError("its content does not fit its checksum")
            del value["schema_version"]
            ledger = checked(cls, value)
            ledger._require_order()
            ledger._require_names()
            ledger._require_files()
            return ledger
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"{path} is not a ledger of schema version {SCHEMA_VERSION} ({error}); "
                "restore it, or move the output directory away, or set another output_dir."
            ) from error

    def _require_order(self) -> None:
        """Steps are done one after the other: exported ones, at most one under way, planned ones."""
        states = [step.state for step in self.steps]
        done = len(list(takewhile(lambda state: state == "exported", states)))
        in_turn = all(state == "planned" for state in states[done + 1 :])
        begun = states != ["planned"] * len(states)
        if not states or not in_turn or (begun and not self.prepared):
            raise ValueError(f"states in an order that no run takes: {states}, prepared: {self.prepared}")
        if (self.finished and done < len(states)) or (self.saved and not self.finished):
            raise ValueError(f"finished: {self.finished}, saved: {self.saved} with states {states}")

    def _require_names(self) -> None:
        """Steps are numbered, have directories of their own, and begin at the model before them or at the base."""
        for number, step in enumerate(self.steps, 1):
            if step.index != number:
                raise ValueError(f"step {number} has the index {step.index}")
            if step.policy_init not in (model_name(0), model_name(number - 1)):
                raise ValueError(f"step {number} starts from {step.policy_init!r}")
        names = [step.name for step in self.steps]
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"two steps have one name: {names}")

    def _require_files(self) -> None:
        """A step that is scored has its reference table, one that is exported its model."""
        layout, models = RunDir(Path()), [model_name(index) for index in range(len(self.steps) + 1)]
        for step in self.steps:
            if step.state != "planned" and layout.reference(step).as_posix() not in self.tables:
                raise ValueError(f"step {step.name} is {step.state} and has no reference table")
            if step.state == "exported" and step.kept and model_name(step.index) not in self.exports:
                raise ValueError(f"step {step.name} is exported and has no digest of its model")
        last = next((step for step in reversed(self.steps) if step.state == "exported"), None)
        if last is not None and not last.kept and not self.saved and model_name(last.index) in self.exports:
            raise ValueError(f"the model of step {last.name} is the last one, and to be removed")
        unknown = [model for model in self.exports if model not in models]
        if unknown:
            raise ValueError(f"it vouches for models that no step makes: {unknown}")
