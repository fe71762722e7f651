"""Runs in processes that import the host for themselves: the proof that the warm process changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from integration_tests.harness.env import ROOT, Env, host_env
from integration_tests.harness.results import Result
from integration_tests.harness.running import TIMEOUT

TOOLS = Path(sys.executable).parent


def run_command(
    command: Sequence[str], cwd: Path, scratch: Path, env: Env | None = None, timeout: float = TIMEOUT
) -> Result:
    """Run a command to its end with the environment of a run; its log goes below `scratch`."""
    folder = scratch / "runs" / f"fresh-{time.time_ns()}"
    folder.mkdir(parents=True)
    log, start, timed_out = folder / "rank0.log", time.monotonic(), False
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=host_env(scratch, env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, timed_out = process.wait(), True
    return Result(tuple(map(str, command)), code, time.monotonic() - start, (log,), timed_out)


def run_fresh(
    args: Sequence[str], cwd: Path, scratch: Path, env: Env | None = None, timeout: float = TIMEOUT
) -> Result:
    """Run the real `axolotl` executable."""
    return run_command([str(TOOLS / "axolotl"), *args], cwd, scratch, env, timeout)


def run_torchrun(
    args: Sequence[str], cwd: Path, scratch: Path, ranks: int = 2, env: Env | None = None, timeout: float = TIMEOUT
) -> Result:
    """Run the host's command line under the real torchrun, on CPU ranks."""
    launcher = ROOT / "integration_tests" / "harness" / "cpu_launcher.py"
    command = [str(TOOLS / "torchrun"), "--standalone", "--nproc_per_node", str(ranks), str(launcher), *args]
    return run_command(command, cwd, scratch, env, timeout)
