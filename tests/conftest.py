"""Fixtures that several files use."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import sdpo_plugin
from sdpo_plugin.run_dir.paths import RunDir

# No deadline: how long an example takes depends on what else the machine does. The same examples every time: the result
# depends on the code, and not on chance.
settings.register_profile(
    "core",
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("core")

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Skip fsync: no test can cut the power, and each fsync is slow on a disk that others use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """An output directory that does not exist yet."""
    return RunDir(tmp_path / "out")


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Runs a program in a fresh interpreter that finds this package; keywords are environment variables."""
    package_root = str(Path(sdpo_plugin.__file__).parents[1])
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "PYTHONPATH")}

    def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**inherited, "PYTHONPATH": package_root, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
