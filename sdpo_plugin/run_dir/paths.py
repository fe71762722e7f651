"""The layout of a run directory: the places of the records and models of a run."""

from dataclasses import dataclass
from pathlib import Path

from sdpo_plugin.plan import StepPlan


@dataclass(frozen=True)
class RunDir:
    """The run directory: the host's ``output_dir``, in which this package keeps its records below ``sdpo``."""

    root: Path

    @property
    def folder(self) -> Path:
        """The directory of everything but the models."""
        return self.root / "sdpo"

    @property
    def plan(self) -> Path:
        """The plan for people; the ledger holds the one that counts."""
        return self.folder / "plan.json"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def progress(self) -> Path:
        """How far the step under way has come."""
        return self.folder / "progress.json"

    @property
    def data_checks(self) -> Path:
        """What was found wrong with the pairs before the first step."""
        return self.folder / "data_checks.json"

    @property
    def loggers(self) -> Path:
        """The runs that loggers keep of this one."""
        return self.folder / "loggers.json"

    @property
    def base_adapter(self) -> Path:
        """M_0 where the base model alone does not make it: the adapter as it was initialised, or as it was given."""
        return self.folder / "start"

    @property
    def staging(self) -> Path:
        """The directory in which a model is written before it gets its name."""
        return self.folder / "staging"

    @property
    def made_rows(self) -> Path:
        """The folder of the rows that `sdpo.before_step` has made."""
        return self.folder / "data"

    def made_rows_of(self, name: str) -> Path:
        """The rows that `sdpo.before_step` has made for the step of this name."""
        return self.made_rows / f"{name}.jsonl"

    @property
    def picked(self) -> Path:
        """The folder of the rows that models have picked out of the pool."""
        return self.folder / "picked"

    def picked_rows(self, step: StepPlan) -> Path:
        """The numbers of the rows that M_{t-1} has picked for step t."""
        return self.picked / f"{step.name}.safetensors"

    @property
    def tables(self) -> tuple[Path, ...]:
        """The folders that hold tables of log-probs."""
        return tuple(self.folder / name for name in ("pool", "reference", "log-probs", "heldout", "samples"))

    def pool(self, number: int) -> Path:
        """The log-probs of source ``number`` (from 1) under M_0, where they lay out the steps."""
        return self.folder / "pool" / f"source-{number}.safetensors"

    def reference(self, step: StepPlan) -> Path:
        """The reference table of D_t."""
        return self.folder / "reference" / f"{step.name}.safetensors"

    def log_probs(self, model: str, step: StepPlan) -> Path:
        """The log-probs of D_t under a model that is not its reference."""
        return self.folder / "log-probs" / f"{model}-{step.name}.safetensors"

    def heldout(self, model: str, column: int) -> Path:
        """The log-probs of held-out set number ``column`` (from 0) under M_t, or under "reference", an external one."""
        return self.folder / "heldout" / f"{model}-{column + 1}.safetensors"

    def sample(self, model: str, step: StepPlan) -> Path:
        """The log-probs of the sampled rows of D_t under a model, where those of all rows are not there."""
        return self.folder / "samples" / f"{model}-{step.name}.safetensors"

    @property
    def lm_evals(self) -> Path:
        """The folder of what lm-eval found of each model."""
        return self.folder / "lm-eval"

    def lm_eval(self, model: str) -> Path:
        """What lm-eval found of M_t."""
        return self.lm_evals / f"{model}.json"

    @property
    def histories(self) -> Path:
        """The folder of what the host logged in each step."""
        return self.folder / "history"

    def history(self, step: StepPlan) -> Path:
        """What the host logged while step t trained."""
        return self.histories / f"{step.name}.json"

    def step(self, step: StepPlan) -> Path:
        """M_t and the host's checkpoints of step t."""
        return self.root / step.name

    def key(self, path: Path) -> str:
        """The name of a file in the ledger."""
        return path.relative_to(self.root).as_posix()
