"""The cost of a seal: `python integration_tests/benchmarks/seal_gigabytes.py [GiB] [DIRECTORY]`.

Writes files of random bytes as large as a checkpoint's, puts them on disk, seals them and checks the seal, as a run
does after every checkpoint and before it resumes from one. Needs that much free space; leaves nothing behind.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sdpo_plugin.digests import of_samples
from sdpo_plugin.run_dir.sealed import flaw, seal

GIB = 2**30
BLOCK = 2**24
ABOUT = {"run": "benchmark", "step": "step-1", "reference": "none"}


def write(path: Path, size: int) -> None:
    """A file of ``size`` bytes that no file system can pack."""
    block = os.urandom(BLOCK)
    with path.open("wb") as file:
        for start in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - start)])


def timed(what: str, size: int, action: Callable[[], object]) -> None:
    """Do it and print seconds and GiB a second."""
    start = time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    print(f"{what:<48} {seconds:8.2f} s  {size / GIB / seconds:8.2f} GiB/s")


def main() -> None:
    """One checkpoint: a third of it weights, two thirds the optimizer's states."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else "2") * GIB)
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        directory = Path(folder) / "checkpoint-1"
        directory.mkdir()

        def save() -> None:
            write(directory / "model.safetensors", size // 3)
            write(directory / "optimizer.pt", size - size // 3)

        def check() -> None:
            assert flaw(directory, ABOUT) is None

        timed("write, into the page cache", size, save)
        timed("seal: put it on disk and digest it", size, lambda: seal(directory, ABOUT))
        timed("seal again: digest alone, nothing to write", size, lambda: seal(directory, ABOUT))
        timed("check the seal before a resume", size, check)
        timed("identity of a base model: sampled digest", size, lambda: of_samples(directory.glob("*.*")))


if __name__ == "__main__":
    main()
