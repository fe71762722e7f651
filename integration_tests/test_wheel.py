"""The built wheel, installed without the checkout, driven through the quickstart as a stranger does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from integration_tests.harness.env import BASE_ENV, ROOT
from integration_tests.harness.one_word import LOADS_PLUGINS, release

MINUTES = 10 * 60.0
HOST_AT = Path(sysconfig.get_paths()["purelib"])
# What the quickstart takes of the checkout: its folder, nothing of the package.
QUICKSTART = ROOT / "example_configs" / "quickstart"


@dataclass(frozen=True)
class Installed:
    """A clean environment with the wheel and the host, and an empty folder to work in."""

    python: Path
    folder: Path
    wheel: Path

    def run(self, *arguments: object) -> str:
        """Run Python there; no checkout can be imported. Returns what it prints."""
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=self.folder,
            env=env | BASE_ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MINUTES,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


def run(command: Sequence[object]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=MINUTES, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel is built from a copy of what git knows; the host is that of these tests, seen by its path alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = ["pyproject.toml", "README.md", "LICENSE", "sdpo_plugin"]
    source.mkdir()
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)  # type: ignore[operator]
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source])
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"])
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel])
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # A path is all that the line adds: an editable installation of the checkout beside the host is not seen.
    (site / "host.pth").write_text(f"{HOST_AT}\n", encoding="utf-8")
    for line in HOST_AT.glob("distutils-precedence.pth"):  # by which setuptools stands in for Python 3.12's distutils
        shutil.copy(line, site / "setuptools.pth")
    (folder / "work").mkdir()
    return Installed(python, folder / "work", wheel)


def test_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {Path(name) for name in wheel.namelist()}
    code = {path for path in names if path.parts[0] == "sdpo_plugin"}
    wanted = {path.relative_to(ROOT) for path in (ROOT / "sdpo_plugin").rglob("*.py")}
    wanted |= {Path("sdpo_plugin") / name for name in ("py.typed", "report/report.schema.json")}
    assert code == wanted
    assert {path.parts[0].split("-")[0] for path in names - code} == {"axolotl_sdpo"}


def test_the_wheel_is_what_is_imported(installed: Installed) -> None:
    found = installed.run("-c", "import sdpo_plugin; print(sdpo_plugin.__file__)").strip()
    assert Path(found).is_relative_to(installed.python.parents[1])


# The quickstart's own base model takes a minute; one of a few updates shows the same.
MAKE_TASK = """
import sys; sys.path.insert(0, "example_configs/quickstart")
from pathlib import Path
from base_model import SFTSettings
from make_task import build
build(Path("example_configs/quickstart/build"), SFTSettings(steps=20))
"""


def test_quickstart_from_the_wheel(installed: Installed) -> None:
    """What the README's `make demo` does, with a `plugins:` line only where the host needs one."""
    folder = Path("example_configs") / "quickstart"
    shutil.copytree(QUICKSTART, installed.folder / folder, ignore=shutil.ignore_patterns("build"))
    installed.run("-c", MAKE_TASK)
    config = yaml.safe_load((QUICKSTART / "quickstart.yaml").read_text(encoding="utf-8")) | {"max_steps": 4}
    if release() >= LOADS_PLUGINS:
        del config["plugins"]
    (installed.folder / folder / "quickstart.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    log = installed.run("-m", "axolotl.cli.main", "train", folder / "quickstart.yaml", "--launcher", "python")
    assert "stepwise DPO (sDPO), 2 steps" in log
    assert (installed.folder / config["output_dir"] / "step-1" / "model.safetensors").is_file()
    assert "Steps: 2, finished." in installed.run("-m", "sdpo_plugin", "report", config["output_dir"])
