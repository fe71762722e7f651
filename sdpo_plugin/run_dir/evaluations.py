"""What lm-eval found of a model: one file for each, `sdpo/lm-eval/M_t.json`, written again as each task is done."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from sdpo_plugin.run_dir.files import write_json
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import checked
from sdpo_plugin.schema import STRICT, Count

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Value:
    """One metric of a task.

    Attributes:
        value: None where it is no finite number.
        stderr: standard error of the value; None where lm-eval gives none.
        higher_is_better: None where lm-eval does not say.
    """

    __pydantic_config__ = STRICT

    value: float | None
    stderr: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class TaskResult:
    """The metrics of a task, or of a group of tasks together.

    Attributes:
        metrics: by name, with the name of lm-eval's filter where there is one: "acc", "exact_match,strict-match".
        num_samples: questions asked; None for a group.
        num_fewshot: worked examples before each question; None for a group.
    """

    __pydantic_config__ = STRICT

    metrics: dict[str, Value]
    num_samples: Count | None = None
    num_fewshot: Count | None = None


@dataclass(frozen=True)
class Entry:
    """What came of one entry of `sdpo.lm_eval.tasks`.

    Attributes:
        settings: what the results depend on besides the model.
        results: of the task; of a group, with all tasks below it; empty where it failed.
        seconds: wall time.
        error: why it failed.
    """

    __pydantic_config__ = STRICT

    settings: dict[str, Any]
    results: dict[str, TaskResult] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that lm-eval found of one model.

    Attributes:
        run_id: of the run that the model belongs to.
        model: "M_0" … "M_T".
        lm_eval_version: of the package.
        every_model: `sdpo.lm_eval.steps: all`: the run evaluates its other models too.
        entries: by name of the entry.
    """

    __pydantic_config__ = STRICT

    run_id: str
    model: str
    lm_eval_version: str
    every_model: bool
    entries: dict[str, Entry] = field(default_factory=dict)

    def has(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether an entry has results with these settings."""
        entry = self.entries.get(name)
        return entry is not None and entry.error is None and entry.settings == settings

    def with_entry(self, name: str, entry: Entry) -> "Evaluation":
        """The same, with one more entry, or with another one in its place."""
        return replace(self, entries={**self.entries, name: entry})


def save_evaluation(run: RunDir, evaluation: Evaluation) -> None:
    """Write it, atomically.

    Raises:
        OSError: it cannot be written.
    """
    write_json(run.lm_eval(evaluation.model), {"schema_version": SCHEMA_VERSION, **asdict(evaluation)})


def load_evaluation(path: Path, run_id: str) -> Evaluation:
    """What was written of a model of this run.

    Raises:
        OSError: the file is missing, or cannot be read.
        ValueError: it is torn, of another schema version or run, or not what it should be.
    """
    content = from_json(path.read_bytes(), allow_inf_nan=False)
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"not an evaluation of schema version {SCHEMA_VERSION}")
    evaluation = checked(Evaluation, content)
    if evaluation.run_id != run_id:
        raise ValueError(f"it is of another run ({evaluation.run_id})")
    if evaluation.model != path.stem:
        raise ValueError(f"it is of another model ({evaluation.model})")
    return evaluation
