"""Doubts about the plan of a run and about its data, in words."""

from dataclasses import asdict
from typing import Any

from sdpo_plugin.check_words import check_lines
from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.data_checks import load_checks
from sdpo_plugin.run_dir.paths import RunDir


def notes(plan: Plan) -> list[str]:
    """Doubts about the order of the sources, what is held out, and a reference that is to move."""
    found = []
    for earlier, later in zip(plan.ordering, plan.ordering[1:], strict=False):
        if later.high >= earlier.low:
            found.append(
                f"the order of {earlier.source} ({earlier.accuracy:.3f}, 95 % {earlier.low:.3f} to {earlier.high:.3f}) "
                f"before {later.source} ({later.accuracy:.3f}, {later.low:.3f} to {later.high:.3f}) lies within noise"
            )
    found += [
        f"{overlap.num_rows:,} rows of step {overlap.step} have a prompt that stands in {overlap.other} too"
        for overlap in plan.overlaps
    ]
    for step in plan.steps:
        every, updates = step.refresh and step.refresh.every, step.num_optimizer_steps
        if every and 0 < updates <= every:
            never = "so that its reference never moves"
            found.append(f"step {step.name} has {updates:,} updates and reference_refresh every {every:,}, {never}")
    return found


def data_checks(run: RunDir) -> tuple[dict[str, Any] | None, list[str]]:
    """What was found in the pairs before the first step, and in words. None: nothing was looked for, or it is lost."""
    try:
        checks = load_checks(run.data_checks)
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError) as error:
        return None, [f"what was found in the data is not shown: {run.data_checks} cannot be read: {error}"]
    return asdict(checks), check_lines(checks.sources)
