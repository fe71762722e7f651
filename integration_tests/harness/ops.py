"""DeepSpeed compiles its shared-memory operation for CPU ranks when the first of them starts."""

from __future__ import annotations

import os
from pathlib import Path


def build() -> None:
    """Compile it beforehand. Runs in the child.

    A run that is killed in the middle of the compilation leaves a lock behind, and every later run waits for it for
    ever; so no test with a time limit may be the one that compiles.
    """
    from deepspeed.accelerator import get_accelerator
    from filelock import FileLock

    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "build.lock"):  # another worker of the session may be at it
        get_accelerator().create_op_builder("ShareMemCommBuilder").load()
