"""The environment of a run: no network, one thread, this interpreter's tools, caches of its own."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Env = Mapping[str, str | None]
BASE_ENV = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AXOLOTL_DATASET_NUM_PROC": "1",
    "PYTHONUNBUFFERED": "1",  # tests wait for lines of a run under way
}
NOT_OURS = (
    "PYTHONDONTWRITEBYTECODE",  # every run would compile the package again
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_USE_DEEPSPEED",
)


def host_env(scratch: Path, extra: Env | None = None) -> dict[str, str]:
    """The environment of a run: this interpreter's tools first, the repository importable, caches of its own."""
    env = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    env.update(BASE_ENV)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["HF_HOME"] = str(scratch / "hf")
    env["TORCH_EXTENSIONS_DIR"] = str(scratch / "torch_extensions")  # no lock that some other run has left
    for key, value in (extra or {}).items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env


# Below those that the kernel gives to whoever asks for any: another run's sockets would take them before this run does.
# Each session of the tests begins elsewhere, and its workers, eight at most, take turns.
_SESSION = zlib.crc32(os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())).encode()) % 1_000
_ports = itertools.count(20_000 + 8 * _SESSION + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 8)


def free_port() -> int:
    """A port that no one listens on, and that no other worker of the tests is given."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):  # taken
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("they do not end")


def rank_env(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def node_env(node: int, nodes: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for the one rank of a machine."""
    one = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(node), "GROUP_WORLD_SIZE": str(nodes)}
    return rank_env(node, nodes, port) | one
