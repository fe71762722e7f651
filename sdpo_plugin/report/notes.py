"""Doubts about the numbers of a report, in words."""

from collections.abc import Mapping

from sdpo_plugin import measures
from sdpo_plugin.plan import Plan, model_name
from sdpo_plugin.tables import LogProbTable

# Reference-free accuracy from which a reference has probably seen the data: a base model is near one half, and the
# paper's model goes from γ_ref -38.60 to +84.35 by training on it.
SEEN_BEFORE = 0.9


def notes(plan: Plan, references: Mapping[int, LogProbTable]) -> list[str]:
    """Doubts about the order of the sources, the reference, and what is held out."""
    found = []
    for earlier, later in zip(plan.ordering, plan.ordering[1:], strict=False):
        if later.high >= earlier.low:
            found.append(
                f"the order of {earlier.source} ({earlier.accuracy:.3f}, 95 % {earlier.low:.3f} to {earlier.high:.3f}) "
                f"before {later.source} ({later.accuracy:.3f}, {later.low:.3f} to {later.high:.3f}) lies within noise"
            )
    for step in plan.steps:
        table = references.get(step.index)
        if table is None or step.reference in {model_name(index) for index in range(len(plan.steps))}:
            continue
        accuracy = measures.reference_free_accuracy(table)
        if accuracy >= SEEN_BEFORE:
            found.append(
                f"the reference {step.reference} prefers the chosen answer in {accuracy:.1%} of the rows of step "
                f"{step.name} (mean γ_ref {measures.gamma_stats(table).mean:+.2f}): it has probably been trained on "
                "them. In the paper mean γ_ref was -38.60 under the base model and +84.35 under the model trained on "
                "that data (arXiv 2403.19270, Fig. 2)"
            )
    found += [
        f"{overlap.num_rows:,} rows of step {overlap.step} have a prompt that stands in {overlap.other} too"
        for overlap in plan.overlaps
    ]
    return found
