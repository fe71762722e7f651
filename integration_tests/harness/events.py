"""The scalars that a run has logged for TensorBoard; read in a fork, where TensorBoard is imported already."""

from __future__ import annotations

from pathlib import Path


def scalars(root: str) -> dict[str, dict[str, list[list[float]]]]:
    """[step, value] of every point by tag, for each run directory below `root` (named relative to it)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = {}
    for folder in sorted({path.parent for path in Path(root).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        runs[str(folder.relative_to(root))] = {
            tag: [[point.step, point.value] for point in events.Scalars(tag)] for tag in tags
        }
    return runs


def tags(root: str) -> dict[str, dict[str, list[str]]]:
    """Tags of pictures and texts, for each run directory below `root`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = {}
    for folder in sorted({path.parent for path in Path(root).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder))
        events.Reload()
        runs[str(folder.relative_to(root))] = {kind: events.Tags()[kind] for kind in ("images", "tensors")}
    return runs
