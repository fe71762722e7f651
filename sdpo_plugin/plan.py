"""What a run will do, fixed before it starts: steps, sources, rows, optimizer steps, reference, start."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sdpo_plugin.files import canonical_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StepPlan:
    """One step of the chain.

    Attributes:
        index: 1 … T.
        name: directory of M_t under the output directory.
        sources: path of each data set entry that makes up D_t.
        num_rows: rows of D_t that are trained on.
        num_dropped: rows of the sources that are not (too long, duplicates); None where the host's
            prepared set does not tell.
        num_heldout: rows held out for this step.
        num_optimizer_steps: updates that the step makes.
        rows_digest: SHA-256 over the token ids of D_t in order; None before tokenization.
        reference: model whose log-probs are the reference, "M_{t-1}".
        policy_init: model that the step starts from, "M_{t-1}".
        settings: the host keys that the step sets for itself.
    """

    index: int
    name: str
    sources: tuple[str, ...]
    num_rows: int
    num_dropped: int | None
    num_heldout: int
    num_optimizer_steps: int
    rows_digest: str | None = None
    reference: str = ""
    policy_init: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The whole chain. ``base_model`` is M_0; ``heldout`` names the sets that every M_t is scored on."""

    base_model: str
    steps: tuple[StepPlan, ...]
    heldout: tuple[str, ...] = ()
    export_steps: str = "all"

    def __post_init__(self) -> None:
        assert [step.index for step in self.steps] == list(range(1, len(self.steps) + 1))

    def to_json(self) -> dict[str, Any]:
        """The plan as it stands in `sdpo/plan.json`."""
        return {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint(), **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """The plan that `to_json` wrote.

        Raises:
            ValueError: another schema version, or a fingerprint that does not fit the rest.
        """
        if value.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"plan schema_version is {value.get('schema_version')!r}; this version reads 1")
        steps = tuple(StepPlan(**{**step, "sources": tuple(step["sources"])}) for step in value["steps"])
        plan = cls(value["base_model"], steps, tuple(value["heldout"]), value["export_steps"])
        if plan.fingerprint() != value["fingerprint"]:
            raise ValueError("plan fingerprint does not fit its content; the file was changed by hand or torn")
        return plan

    def fingerprint(self) -> str:
        """SHA-256 of everything that the plan says."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()

    def table(self) -> str:
        """The plan as a table of text, one row a step; what `axolotl preprocess` prints."""
        rows = [("step", "sources", "rows", "dropped", "held out", "optimizer steps", "reference", "starts from")]
        for step in self.steps:
            dropped = "?" if step.num_dropped is None else f"{step.num_dropped:,}"
            rows.append(
                (
                    f"{step.index} {step.name}",
                    ", ".join(step.sources),
                    f"{step.num_rows:,}",
                    dropped,
                    f"{step.num_heldout:,}",
                    f"{step.num_optimizer_steps:,}",
                    step.reference,
                    step.policy_init,
                )
            )
        return text_table(rows)


def model_name(index: int) -> str:
    """M_0 is the base model S, M_t the model after step t."""
    return f"M_{index}"


def host_total_steps(num_rows: int, num_epochs: float, batch_size: int) -> int:
    """Optimizer steps of a run over ``num_rows`` rows, as Axolotl counts them (common/datasets.py).

    Args:
        num_rows: rows of the training set after dropping.
        num_epochs: passes over it.
        batch_size: rows per optimizer step over all ranks.
    """
    return math.ceil(num_rows * num_epochs / batch_size)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by width, the first row as heading; cells that are numbers stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if cell.strip("+-–").replace(",", "").replace(".", "").isdigit() else cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *(line(row) for row in rows[1:])])
