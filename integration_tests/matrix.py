"""The supported hosts, each in an environment of its own with the built wheel in it, and what holds there.

`python -m integration_tests.matrix [--only NAME] [--newest] [--into DIR]` builds what is missing, runs the same tests
in each, and prints a table. A host whose Python is not on this machine is named and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from integration_tests.harness.env import BASE_ENV, ROOT
from sdpo_plugin.text import text_table

# Contracts, one word, the wheel; equivalence with the host's chain; what TRL reads; packed rows; resume; commands;
# ranks; endings.
TESTS = (
    "compat one_word wheel equivalence answer_logits packed resume commands engines zero3 endings import_order"
).split()
PACKAGES = ("axolotl", "trl", "transformers", "accelerate", "peft", "deepspeed", "torch")


@dataclass(frozen=True)
class Host:
    """A release of Axolotl on a release of Python."""

    axolotl: str
    python: str

    @property
    def name(self) -> str:
        return f"axolotl-{self.axolotl}-py{self.python}"


HOSTS = (Host("0.19.0", "3.11"), Host("0.19.0", "3.12"), Host("0.20.0", "3.12"), Host("0.21.0", "3.12"))


def interpreters(python: str) -> Iterator[Path]:
    """Where a release of Python is: on the path, or under pyenv."""
    found = shutil.which(f"python{python}")
    if found:
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(pyenv.glob(f"{python}.*/bin/python{python}"))


def call(*command: object, **options: object) -> None:
    """Run a command to its end; what it prints is seen."""
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def works(python: Path) -> bool:
    """A shim of pyenv is there for every release, and ends with an error where that one is not chosen."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def build(host: Host, interpreter: Path, folder: Path) -> Path:
    """An environment with the host and the wheel of this checkout; its Python. The host is installed once."""
    environment = folder / host.name
    python, ready = environment / "bin" / "python", environment / f"installed-{digest_of_requirements()}"
    if not ready.exists():
        call(interpreter, "-m", "venv", "--clear", environment)
        install(python, f"axolotl[deepspeed]=={host.axolotl}", "pytest", "pytest-xdist", "hypothesis")
        ready.touch()
    wheels = environment / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT)
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", *wheels.glob("*.whl"))
    return python


def install(python: Path, *requirements: str) -> None:
    """By uv, which links what it has; by pip, which takes ten minutes for the newest host, where uv finds it not."""
    try:
        call(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *requirements)
    except subprocess.CalledProcessError:
        call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)


def digest_of_requirements() -> str:
    """What an environment is made from."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:12]


def versions(python: Path) -> dict[str, str]:
    """Of the packages in an environment."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{p: m.version(p) for p in {PACKAGES!r}}}))"
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout))


def contracts(python: Path, folder: Path) -> str:
    """What `sdpo_plugin doctor` says of them, e.g. "60 of 60"."""
    done = subprocess.run(
        [python, "-m", "sdpo_plugin", "doctor"], cwd=folder, env=environ(), capture_output=True, text=True, check=False
    )
    found = re.search(r"contracts: (\d+ of \d+) hold", done.stdout)
    return found[1] if found else "–"


def environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | BASE_ENV


def run_tests(python: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether all passed, and pytest's last line in short."""
    paths = [f"integration_tests/test_{name}.py" for name in tests]
    command = [python, "-m", "pytest", *paths, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-q"]
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    return process.returncode == 0, re.sub(r" in .*|=", "", lines[-1]).strip()


def main() -> int:
    """Returns the exit code: 1 where a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="one of: " + ", ".join(host.name for host in HOSTS))
    parser.add_argument("--newest", action="store_true", help="the last of them alone")
    parser.add_argument("--into", type=Path, default=ROOT / ".matrix", help="where the environments are made")
    asked = parser.parse_args()
    rows = [("host", "Python", *PACKAGES[1:], "contracts", "tests", "minutes")]
    good = True
    for host in HOSTS[-1:] if asked.newest else HOSTS:
        if asked.only not in (None, host.name):
            continue
        interpreter = next(filter(works, interpreters(host.python)), None)
        if interpreter is None:
            print(f"{host.name}: no Python {host.python} on this machine; left out")
            continue
        began = time.monotonic()
        python = build(host, interpreter, asked.into)
        seen = versions(python)
        passed, said = run_tests(python, TESTS)
        minutes, libraries = f"{(time.monotonic() - began) / 60:.1f}", [seen[name] for name in PACKAGES[1:]]
        rows.append(
            (
                host.axolotl,
                host.python,
                *libraries,
                contracts(python, asked.into),
                said,
                minutes,
            )
        )
        good = good and passed
    print(text_table(rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
