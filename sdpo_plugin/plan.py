"""The plan of a run, fixed before it starts: steps, sources, rows, updates, reference, start."""

import math
from dataclasses import dataclass, field
from typing import Any

from sdpo_plugin.names import StepName
from sdpo_plugin.refresh import RefreshRule
from sdpo_plugin.schema import STRICT, Count
from sdpo_plugin.text import text_table


@dataclass(frozen=True)
class StepPlan:
    """One step of the chain.

    Attributes:
        index: 1 … T.
        name: directory of M_t under the run directory.
        sources: path of each data set entry that makes up D_t.
        num_rows: rows of D_t that are trained on.
        num_dropped: rows of the sources that are not (too long, duplicates); None where the host's
            prepared set does not tell.
        num_heldout: rows held out for this step.
        num_optimizer_steps: updates that the step makes.
        rows_digest: SHA-256 over the token ids of D_t in order; None before tokenization.
        reference: model whose log-probs are the reference: "M_{t-1}", "M_0", or a path or hub id.
        policy_init: model that the step starts from, "M_{t-1}" or "M_0".
        settings: the host keys that the step sets for itself.
        source_rows: rows of D_t that come from each of ``sources``.
        is_awaited: `sdpo.before_step` makes D_t, and has not yet: there are 0 rows until then, and 0 updates unless
            `max_steps` is set.
        refresh: when the policy makes the reference again within the step; None: it stays.
        is_unranked: M_{t-1} picks D_t out of what is left of the pool, and has not yet: its size alone is known.
    """

    __pydantic_config__ = STRICT

    index: Count
    name: StepName
    sources: tuple[str, ...]
    num_rows: Count
    num_dropped: Count | None
    num_heldout: Count
    num_optimizer_steps: Count
    rows_digest: str | None = None
    reference: str = ""
    policy_init: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    source_rows: tuple[Count, ...] = ()
    is_awaited: bool = False
    refresh: RefreshRule | None = None
    is_unranked: bool = False

    def describe_reference(self) -> str:
        """The reference, and when it is refreshed."""
        return self.reference if self.refresh is None else f"{self.reference}, refreshed {self.refresh}"

    def describe_sources(self) -> str:
        """The sources, with their rows where several make up the step."""
        if len(self.sources) < 2 or not self.source_rows:
            return ", ".join(self.sources)
        parts = zip(self.sources, self.source_rows, strict=True)
        return ", ".join(f"{source} ({rows:,})" for source, rows in parts if rows)

    def describe_rows(self) -> str:
        """Their number, and whether they are known."""
        if self.is_awaited:
            return "not made yet"
        return f"{self.num_rows:,}, not ranked yet" if self.is_unranked else f"{self.num_rows:,}"

    def name_row(self, row: int) -> str:
        """A row of D_t in words: step, source, number in that source's part of the step, all as prepared, from 0."""
        here = f"row {row} of D_{self.index} (counted from 0; step {self.name}"
        if len(self.sources) == 1:
            return f"{here}, source {self.sources[0]})"
        if not self.source_rows:
            return f"{here}, one of the sources {', '.join(self.sources)})"
        for source, rows in zip(self.sources, self.source_rows, strict=True):
            if row < rows:
                return f"{here}, row {row} of those from source {source})"
            row -= rows
        raise AssertionError("a row beyond the end of the step")

    @property
    def starts_at_reference(self) -> bool:
        """Whether policy and reference are one model where the step begins, so that the ln 2 gate applies."""
        return self.reference == self.policy_init


@dataclass(frozen=True)
class OrderedSource:
    """A source in the order easy to hard: the base model's reference-free accuracy on it, with a 95 % interval."""

    __pydantic_config__ = STRICT

    source: str
    num_rows: Count
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class RatedSource:
    """A source in the order easy to hard that a column of the data gives: the mean of that column."""

    __pydantic_config__ = STRICT

    source: str
    num_rows: Count
    mean: float


@dataclass(frozen=True)
class Overlap:
    """Rows of ``step`` whose prompt stands in ``other`` too: another step's data or a held-out set."""

    __pydantic_config__ = STRICT

    step: str
    other: str
    num_rows: Count


@dataclass(frozen=True)
class LeftOut:
    """Rows of a source that no step trains on, because ``key`` of `sdpo.partition` leaves them out.

    Attributes:
        source: its path.
        num_rows: that are left out.
        of_rows: that it has, without those that the host has dropped.
        key: "max_rows", "weights" or "drop_hardest".
    """

    __pydantic_config__ = STRICT

    source: str
    num_rows: Count
    of_rows: Count
    key: str

    def describe(self) -> str:
        """In words."""
        return f"{self.key} leaves out {self.num_rows:,} of {self.of_rows:,} rows of {self.source}"


@dataclass(frozen=True)
class Plan:
    """The whole chain.

    Attributes:
        base_model: M_0.
        heldout: names of the held-out sets, on which every M_t is evaluated.
        partition: `sdpo.partition` as it was applied; empty where an entry or `sdpo.steps` makes a step.
        ordering: sources easy to hard, with partition easy_to_hard by source and M_0's log-probs.
        overlaps: where prompts of a step stand elsewhere too.
        diagnostics: `max_rows` and `seed` of the rows on which every model is compared; empty: none is.
        rated: sources easy to hard, where a column of the data orders them.
        left_out: rows that are in no step because `sdpo.partition` leaves them out.
    """

    __pydantic_config__ = STRICT

    base_model: str
    steps: tuple[StepPlan, ...]
    heldout: tuple[str, ...] = ()
    export_steps: str = "all"
    partition: dict[str, Any] = field(default_factory=dict)
    ordering: tuple[OrderedSource, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    diagnostics: dict[str, Count] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    rated: tuple[RatedSource, ...] = ()

    def __post_init__(self) -> None:
        indices = [step.index for step in self.steps]
        assert indices == list(range(1, len(indices) + 1)), f"steps are numbered {indices}"

    def table(self) -> str:
        """The plan as a table of text, one row a step; what `axolotl preprocess` prints."""
        rows = [("step", "sources", "rows", "dropped", "held out", "updates", "reference", "starts from")]
        for step in self.steps:
            dropped = "–" if step.num_dropped is None else f"{step.num_dropped:,}"
            updates = "–" if step.is_awaited and not step.num_optimizer_steps else f"{step.num_optimizer_steps:,}"
            rows.append(
                (
                    f"{step.index} {step.name}",
                    step.describe_sources(),
                    step.describe_rows(),
                    dropped,
                    f"{step.num_heldout:,}",
                    updates,
                    step.describe_reference(),
                    step.policy_init,
                )
            )
        return "\n".join([text_table(rows), *(part.describe() for part in self.left_out)])


def model_name(index: int) -> str:
    """M_0 is the base model S, M_t the model after step t."""
    return f"M_{index}"


M_0 = model_name(0)


def host_total_steps(num_rows: int, num_epochs: float, batch_size: int) -> int:
    """Optimizer steps of a run over ``num_rows`` rows, as Axolotl counts them (common/datasets.py).

    Args:
        num_rows: rows of the training set after dropping.
        num_epochs: passes over it.
        batch_size: rows per optimizer step over all ranks.
    """
    return math.ceil(num_rows * num_epochs / batch_size)
