"""Ranks on CPUs, which the host's stack otherwise takes for single processes.

`accelerate` answers "no distribution" when there is no accelerator, whatever torchrun has set, and DeepSpeed then stops
at a batch size that does not fit. FSDP it has for GPUs alone, although PyTorch shards on a CPU too. Axolotl places the
model of rank n on GPU n. Usable as a script too:
`torchrun --nproc_per_node 2 integration_tests/harness/cpu_launcher.py train config.yaml`.
"""

from __future__ import annotations

import importlib
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
            if os.environ.get("ACCELERATE_USE_FSDP") != "true":
                return "gloo", DistributedType.MULTI_CPU
            self.device = torch.device("cpu")  # else it would be the GPU of this rank
            return "gloo", DistributedType.MULTI_GPU  # of which `AcceleratorState` makes FSDP
        return original(self, *args, **kwargs)

    PartialState._prepare_backend = prepare
    place_on_cpu()
    ask_no_gpu_for_its_peers()
    lay_ranks_out_on_cpu()
    gather_into_views()
    compile_no_operation()


def gather_into_views() -> None:
    """Below ZeRO-3 DeepSpeed gathers into views of its weights, which gloo takes only where nothing is differentiated.

    It is the end of an update, and nothing is. With NCCL it works as it stands.
    """
    import deepspeed.runtime.zero.stage_1_and_2 as below_3
    import torch

    below_3.all_gather_dp_groups = torch.no_grad()(below_3.all_gather_dp_groups)


def compile_no_operation() -> None:
    """DeepSpeed has an operation for CPU ranks that nothing but tensor parallelism calls. Ranks on GPUs have none.

    It takes a minute to compile, and half a second to find in every rank.
    """
    import torch

    backend = importlib.import_module("deepspeed.comm.torch")  # whose parent has PyTorch under that name

    def build_none() -> None:
        return None

    if not torch.cuda.is_available():
        backend.build_shm_op = build_none


def lay_ranks_out_on_cpu() -> None:
    """Axolotl lays out the ranks of FSDP as GPUs."""
    import torch
    from accelerate.parallelism_config import ParallelismConfig

    original = ParallelismConfig.build_device_mesh

    def build(self: ParallelismConfig, device_type: str) -> Any:
        return original(self, device_type if torch.cuda.is_available() else "cpu")

    ParallelismConfig.build_device_mesh = build


def place_on_cpu() -> None:
    """Without DeepSpeed every rank loads a whole model: where there is no GPU, into main memory."""
    import torch
    from axolotl.loaders import ModelLoader

    original = ModelLoader._set_device_map_config

    def place(self: Any) -> None:
        original(self)
        if "LOCAL_RANK" in os.environ and not torch.cuda.is_available() and "device_map" in self.model_kwargs:
            self.model_kwargs["device_map"] = "cpu"

    ModelLoader._set_device_map_config = place


def ask_no_gpu_for_its_peers() -> None:
    """With a PyTorch that is built for GPUs, and none in the machine, the host's question ends the run."""
    import torch

    def answer(*args: Any) -> bool:
        raise AssertionError("there is no GPU")  # what a PyTorch without CUDA raises, and the host catches

    if not torch.cuda.is_available():
        torch.cuda.can_device_access_peer = answer


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
