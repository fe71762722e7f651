"""A process that has imported the host once and forks a child for every run.

Importing the host costs more than most test runs. The parent therefore does nothing but import: it computes no tensor,
starts no thread pool and reads no config, so that a child is as fresh as a new process. What is under test is never
imported here; a child imports it by itself, from the source as it then is.

Protocol, JSON lines: `{"ranks": [{"argv", "env", "cwd", "log", ...}]}` comes in by stdin and is answered by
`{"pids": [...]}`; every end of a child is sent as `{"exit": pid, "code": code}`, in the order in which they end. The
system gives process ids out again: one that was sent before is a new process.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEAVY = (
    "axolotl.cli.main",
    "axolotl.cli.train",
    "axolotl.cli.config",
    "axolotl.cli.preprocess",
    "axolotl.cli.merge_lora",
    "axolotl.common.datasets",
    "axolotl.train",
    "axolotl.core.builders",
    "axolotl.core.trainers.dpo.trainer",
    "axolotl.utils.data.rl",
    "transformers.models.auto.modeling_auto",
    "trl.trainer.dpo_trainer",
    "peft",
    "deepspeed",
)
# Preparing a model for ZeRO-3, or any model at all, pulls these in lazily: nothing but import cost.
LIGHT = (
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.partition_parameters",
    "accelerate.utils.deepspeed",
    "transformers.integrations.deepspeed",
    "torch._dynamo",
    "safetensors.torch",
    "tensorboard",
    "trackio",  # the model card asks for it; it takes as long as the rest of a run
    *("matplotlib.style", "matplotlib.figure", "matplotlib.backends.backend_agg"),  # the report is drawn with it
)
UNDER_TEST = "sdpo_plugin"
PLUGINS = "axolotl.plugins"


@contextmanager
def no_plugins_found() -> Iterator[None]:
    """Keep the host from loading installed plugins, as Axolotl 0.21 does while it is imported; a child finds them."""
    original = importlib.metadata.entry_points
    importlib.metadata.entry_points = lambda **asked: () if asked.get("group") == PLUGINS else original(**asked)
    try:
        yield
    finally:
        importlib.metadata.entry_points = original
        base = sys.modules.get("axolotl.integrations.base")
        if base is not None and "entry_points" in vars(base):  # it reads them anew when this is another function
            base.entry_points = original


def import_host() -> float:
    """Import what every run needs; return the seconds it took."""
    start = time.monotonic()
    with no_plugins_found():
        for name in HEAVY:
            importlib.import_module(name)
        for name in LIGHT:
            try:
                importlib.import_module(name)
            except ImportError:  # another version of the host, or an optional part: a child may do without
                continue
    if UNDER_TEST in sys.modules:
        raise RuntimeError(
            f"{UNDER_TEST} was imported before any run asked for it: a change of its source would not be seen"
        )
    return time.monotonic() - start


def forget_frozen_imports() -> None:
    """To a run nothing is frozen when it begins, as in a process that a shell has started; and nothing thaws.

    Counting a million frozen objects takes it a tenth of a second, and each collection after they had thawed, half one.
    """
    gc.get_freeze_count = lambda: 0
    gc.unfreeze = lambda: None


def run_cli(argv: list[str]) -> None:
    """Call the entry point of the `axolotl` console script."""
    from axolotl.cli.main import main

    forget_frozen_imports()
    sys.argv = ["axolotl", *argv]
    sys.modules["__main__"].__package__ = None  # click names the program by it
    main()


def call(target: str, args: list[Any], kwargs: dict[str, Any], result: str) -> None:
    """Call `module:function` and leave what it returns as JSON in the file `result`."""
    module, _, name = target.partition(":")
    value = getattr(importlib.import_module(module), name)(*args, **kwargs)
    Path(result).write_text(json.dumps(value), encoding="utf-8")


def seed_process(seed: int | None) -> None:
    """Give the fork its own randomness: the chosen seed, or a new one, but never the parent's."""
    import random

    import numpy
    import torch

    chosen = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    random.seed(chosen)
    numpy.random.seed(chosen)
    torch.manual_seed(chosen)


def enter(rank: dict[str, Any]) -> None:
    """Make the forked process look as if a shell had started it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    source = os.open(rank.get("stdin") or os.devnull, os.O_RDONLY)
    log = os.open(rank["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(source, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.chdir(rank["cwd"])
    for key, value in rank.get("env", {}).items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def perform(rank: dict[str, Any]) -> int:
    """Do the run in the child and return its exit status, as the interpreter would have."""
    try:
        seed_process(rank.get("init_seed"))
        from integration_tests.harness.cpu_launcher import answer_for_cpu_ranks, compile_no_operation

        compile_no_operation()
        if rank.get("cpu_ranks"):
            answer_for_cpu_ranks()
        if "call" in rank:
            call(rank["call"], rank.get("args", []), rank.get("kwargs", {}), rank["result"])
        else:
            run_cli(rank["argv"])
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - what ends a process ends the child, and the log says why
        # As the interpreter does: it keeps the traceback, and with it whatever the run had open, while it exits.
        sys.last_type, sys.last_value, sys.last_traceback = sys.exc_info()
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave(code: int) -> None:
    """End the child with its exit handlers run and its output flushed, but without the parent's teardown."""
    import atexit

    try:
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - nothing may unwind into the parent's loop
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code & 0xFF)


def fork(rank: dict[str, Any], inherited: tuple[int, ...]) -> int:
    """Fork one rank; return its process id to the parent."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for descriptor in inherited:
            os.close(descriptor)
        enter(rank)
        code = perform(rank)
    except BaseException:  # noqa: BLE001 - nothing may unwind into the parent's loop
        traceback.print_exc()
    finally:
        leave(code)
    raise AssertionError("unreachable")


def reap(children: set[int]) -> list[tuple[int, int]]:
    """Return (pid, code) of every child that has ended."""
    ended = []
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.discard(pid)
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def serve(requests: int, answers: int) -> None:
    """Fork on request until the requests end; then no child is left behind."""
    children: set[int] = set()
    pending = b""

    def tell(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    tell({"ready": import_host()})
    gc.collect()
    gc.freeze()  # keeps the imported objects out of every collection, and their pages shared with the children
    while True:
        readable, _, _ = select.select([requests], [], [], 0.02 if children else None)
        for pid, code in reap(children):
            tell({"exit": pid, "code": code})
        if not readable:
            continue
        chunk = os.read(requests, 1 << 16)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            pids = [fork(rank, (requests, answers)) for rank in json.loads(line)["ranks"]]
            children.update(pids)
            tell({"pids": pids})
    for pid in children:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main() -> None:
    """Keep the protocol's channel for itself: whatever the host prints while it is imported goes to stderr."""
    requests, answers = os.dup(0), os.dup(1)
    os.set_inheritable(requests, False)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    serve(requests, answers)


if __name__ == "__main__":
    main()
