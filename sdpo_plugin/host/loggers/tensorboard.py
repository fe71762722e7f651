"""TensorBoard: one directory of event files below the run directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdpo_plugin.host.loggers.logger import Logger, Rows, Value


class TensorBoard(Logger):
    """`runs/…` of the run directory, or the directory that `TENSORBOARD_LOGGING_DIR` names."""

    name = "tensorboard"

    def before(self, kept: Mapping[str, str], processes: int) -> dict[str, str]:
        """Write to the same directory, where TensorBoard is told to forget what the process that died had ahead."""
        if kept:
            self.callback.logging_dir = str(self.chain.root / kept["directory"])  # an absolute one stays what it is
            self.callback.tb_writer = self.callback._SummaryWriter(
                log_dir=self.callback.logging_dir, purge_step=self.chain.begins_at + 1
            )
        return {}

    def identity(self) -> dict[str, str]:
        """The directory, relative to the run directory where it lies in it: that may be moved."""
        directory, root = Path(self.callback.logging_dir).absolute(), self.chain.root.absolute()
        return {"directory": str(directory.relative_to(root) if directory.is_relative_to(root) else directory)}

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As text, beside the training arguments."""
        rows = [(key, value) for key, value in values.items()]
        self.callback.tb_writer.add_text("sdpo/steps", _markdown(("parameter", "value"), rows))

    def table(self, name: str, columns: Sequence[str], rows: Rows, update: int) -> None:
        """As text."""
        self.callback.tb_writer.add_text(name, _markdown(columns, rows), update)
        self.callback.tb_writer.flush()

    def image(self, name: str, path: Path, update: int) -> None:
        """As an image."""
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.callback.tb_writer.add_image(name, pixels, update, dataformats="HWC")
        self.callback.tb_writer.flush()


def _markdown(columns: Sequence[str], rows: Rows) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
