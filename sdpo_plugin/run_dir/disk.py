"""The least disk space that a plan fills. Pure functions on numbers."""

from dataclasses import dataclass

from sdpo_plugin.errors import OutputError
from sdpo_plugin.text import text_table

GIB = 2**30


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run will write and keep.

    Attributes:
        models: exports of M_t that stand at the same time.
        model_bytes: of one of them.
        checkpoints: that stand at the end, over all steps.
        checkpoint_bytes: of one of them.
    """

    models: int
    model_bytes: int
    checkpoints: int
    checkpoint_bytes: int

    @property
    def total(self) -> int:
        """All of it; the host's final model counts as one more."""
        return (self.models + 1) * self.model_bytes + self.checkpoints * self.checkpoint_bytes

    def table(self, free: int) -> str:
        """The estimate for reading."""
        rows = [
            ("what", "number", "GiB each", "GiB"),
            _row("exported models", self.models, self.model_bytes),
            _row("final model", 1, self.model_bytes),
            _row("checkpoints", self.checkpoints, self.checkpoint_bytes),
            ("at least, in all", "", "", f"{self.total / GIB:,.2f}"),
            ("free", "", "", f"{free / GIB:,.2f}"),
        ]
        return text_table(rows)


def kept_checkpoints(num_updates: int, every: int | None, limit: int | None) -> int:
    """Checkpoints that one step leaves.

    Args:
        num_updates: of the step.
        every: updates between two of them; None: none is written.
        limit: of the host's `save_total_limit`; None or 0: all are kept.
    """
    if every is None:
        return 0
    written = num_updates // max(1, every)
    return min(written, limit) if limit else written


def models_at_once(num_steps: int, export_steps: str) -> int:
    """Exports of these steps that stand at the same time: all, or M_{t-1} beside M_t while that is written."""
    return num_steps if export_steps == "all" else min(2, num_steps)


def require_space(need: DiskNeed, free: int, output_dir: str) -> None:
    """Refuse a run that is certain to fill the disk.

    Raises:
        OutputError: the estimate, which counts too little rather than too much, does not fit.
    """
    if need.total > free:
        raise OutputError(
            f"output_dir: {output_dir!r} has {free / GIB:,.2f} GiB free, and this run writes at least "
            f"{need.total / GIB:,.2f} GiB:\n{need.table(free)}\n"
            "Free some space, keep fewer checkpoints (save_total_limit, save_only_model), set sdpo.export_steps: last, "
            "or set an output_dir on a larger disk."
        )


def _row(what: str, number: int, size: int) -> tuple[str, str, str, str]:
    return (what, str(number), f"{size / GIB:,.2f}", f"{number * size / GIB:,.2f}")
