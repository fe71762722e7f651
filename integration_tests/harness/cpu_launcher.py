"""Ranks on CPUs, which the host's stack otherwise takes for single processes.

`accelerate` answers "no distribution" when there is no accelerator, whatever torchrun has set, and DeepSpeed then stops
at a batch size that does not fit. Usable as a script too:
`torchrun --nproc_per_node 2 integration_tests/harness/cpu_launcher.py train config.yaml`.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def answer_for_cpu_ranks() -> None:
    """Let accelerate use gloo when a launcher has set ranks and the machine has no GPU."""
    import torch
    from accelerate.state import DistributedType, PartialState

    original = PartialState._prepare_backend

    def prepare(self: PartialState, *args: Any, **kwargs: Any) -> Any:
        if "LOCAL_RANK" in os.environ and not torch.cuda.is_available():
            return "gloo", DistributedType.MULTI_CPU
        return original(self, *args, **kwargs)

    PartialState._prepare_backend = prepare


def main() -> None:
    """Call the host's command line in this rank, never letting it launch ranks of its own."""
    from axolotl.cli.main import main as axolotl_main

    argv = sys.argv[1:]
    if argv and argv[0] in {"train", "evaluate", "inference"} and "--launcher" not in argv:
        argv += ["--launcher", "python"]
    answer_for_cpu_ranks()
    sys.argv = ["axolotl", *argv]
    axolotl_main()


if __name__ == "__main__":
    main()
