"""What a run has done so far, and where it keeps it: one record a step, written after the data it vouches for."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import write_json
from sdpo_plugin.plan import Plan, StepPlan

SCHEMA_VERSION = 1
State = Literal["planned", "scored", "training", "trained", "exported"]


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
    def report(self) -> Path:
        return self.root / "sdpo" / "report.json"

    @property
    def tables(self) -> tuple[Path, ...]:
        """The folders that hold tables of log-probs."""
        return tuple(self.root / "sdpo" / name for name in ("reference", "scores", "heldout"))

    def reference(self, step: StepPlan) -> Path:
        """The reference table of D_t."""
        return self.root / "sdpo" / "reference" / f"{step.name}.safetensors"

    def score(self, model: str, step: StepPlan) -> Path:
        """The log-probs of D_t under a model that is not its reference."""
        return self.root / "sdpo" / "scores" / f"{model}-{step.name}.safetensors"

    def heldout(self, model: str, column: int) -> Path:
        """The log-probs of held-out set number ``column`` (from 0) under ``model``."""
        return self.root / "sdpo" / "heldout" / f"{model}-{column + 1}.safetensors"

    def step(self, step: StepPlan) -> Path:
        """M_t and the host's checkpoints of step t."""
        return self.root / step.name


@dataclass(frozen=True)
class StepRecord:
    """What one step has done.

    Attributes:
        state: the last thing that is finished and on disk.
        first_loss: mean loss of the first batch, before the first update.
        final_loss: the last training loss that the host logged.
        num_optimizer_steps: updates made.
        score_seconds, train_seconds, export_seconds: wall time.
    """

    index: int
    name: str
    state: State = "planned"
    first_loss: float | None = None
    final_loss: float | None = None
    num_optimizer_steps: int | None = None
    score_seconds: float | None = None
    train_seconds: float | None = None
    export_seconds: float | None = None


@dataclass(frozen=True)
class Ledger:
    """The records of all steps of one plan."""

    plan_fingerprint: str
    steps: tuple[StepRecord, ...]
    finished: bool = False

    @classmethod
    def begin(cls, plan: Plan) -> "Ledger":
        """Nothing is done yet."""
        return cls(plan.fingerprint(), tuple(StepRecord(step.index, step.name) for step in plan.steps))

    def record(self, index: int, **facts: Any) -> "Ledger":
        """A ledger in which step ``index`` (from 1) has these facts; the rest is as it was."""
        steps = tuple(replace(step, **facts) if step.index == index else step for step in self.steps)
        return replace(self, steps=steps)

    def save(self, path: Path) -> None:
        """Write the ledger, atomically."""
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read what ``save`` wrote.

        Raises:
            OutputError: the file is torn or of another schema version.
        """
        try:
            value = json.loads(path.read_bytes())
            if value.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("another schema version")
            steps = tuple(StepRecord(**step) for step in value.pop("steps"))
            unknown = {step.state for step in steps} - set(get_args(State))
            if unknown:
                raise ValueError(f"unknown state {sorted(unknown)}")
            return cls(steps=steps, **value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{path} is not a ledger of schema version {SCHEMA_VERSION} ({error}); "
                "move the output directory away or set another output_dir."
            ) from error


def require_fresh(run: RunDir) -> None:
    """Refuse an output directory in which an earlier run has finished a step.

    Raises:
        OutputError: it holds trained steps; nothing is touched.
    """
    if not run.ledger.exists():
        return
    done = [step.name for step in Ledger.load(run.ledger).steps if step.state in ("trained", "exported")]
    if done:
        raise OutputError(
            f"output_dir: {str(run.root)!r} holds finished steps of an earlier run ({', '.join(done)}), "
            "and training would overwrite them; set another output_dir, or move or delete this one."
        )
