"""`rl: sdpo` beside the chain of unmodified `rl: dpo` runs that does the same, in alternation.

    python -m integration_tests.benchmarks.against_host --model 25M --rows 80 --repeat 5
    python -m integration_tests.benchmarks.against_host --rows 80 --profile
    python -m integration_tests.benchmarks.against_host --model 1B --vocabulary 128256 --bf16 --rows 400  # on a GPU

Everything is started as a user starts it, `axolotl train config.yaml --launcher python`, each run in a process of its
own, from data that no run has prepared. Prints every repetition, the medians and their ratios. A benchmark, not a
test: nothing fails because it is slow; what ends with other weights than the chain says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from integration_tests.benchmarks.tokens import allowed
from integration_tests.benchmarks.workload import FILE, SHAPES, Workload, dpo_config, make_model, sdpo_config, write_set

ROOT = Path(__file__).resolve().parents[2]
Marks = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What one side took: all its processes together.

    Attributes:
        wall: seconds.
        updating: seconds between the first and the last update of each step.
        pairs: trained in that time.
        memory: the most megabytes above those at the model's load, on a GPU those of its own; of the rank that marks.
        model: where M_T is.
        marks: of each process.
    """

    wall: float
    updating: float
    pairs: int
    memory: float
    model: Path
    marks: list[Marks]


def start(config: Mapping[str, Any], folder: Path, ranks: int, profile: Path | None = None) -> tuple[float, Marks]:
    """One process of the host's command line; its seconds, and its marks."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    marks = folder / "marks.jsonl"
    python = [sys.executable] if profile is None else [sys.executable, "-m", "cProfile", "-o", str(profile)]
    command = [*python, "-m", "axolotl.cli.main", "train", str(folder / "config.yaml"), "--launcher", "python"]
    if ranks > 1:
        module = str(ROOT / "integration_tests/harness/cpu_launcher.py")
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), module]
        command = [sys.executable, *launcher, "train", str(folder / "config.yaml")]
    env = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {FILE: str(marks), "PYTHONPATH": str(ROOT)}
    began = time.time()
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, env=env, stdout=log, stderr=log, cwd=folder).returncode
    took = time.time() - began
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with {code}:\n" + (folder / "log.txt").read_text()[-3000:])
    found = [json.loads(line) for line in marks.read_text(encoding="utf-8").splitlines()]
    return took, [{"event": "start", "time": began, "rss": 0.0, "peak": 0.0}, *found]


def of(took: float, marks: Sequence[Marks], model: Path, pairs_an_update: int) -> Run:
    """What the marks of a side's processes say."""
    updating, updates, memory = 0.0, 0, 0.0
    for process in marks:
        base = next(mark["rss"] for mark in process if mark["event"] == "data")
        memory = max(memory, process[-1]["peak"] - base)
        times: list[float] = []
        for mark in process:
            if mark["event"] == "update":
                times.append(mark["time"])
            elif mark["event"] == "train end":
                updating, updates, times = updating + times[-1] - times[0], updates + len(times) - 1, []
    return Run(took, updating, updates * pairs_an_update, memory, model, list(marks))


def host_chain(work: Workload, base: Path, entries: Sequence[Mapping[str, Any]], folder: Path, ranks: int) -> Run:
    """A full `rl: dpo` run a step, each from the model before; an adapter is merged into it by the host's command."""
    model, took, marks = base, 0.0, []
    for step, entry in enumerate(entries, 1):
        place = folder / f"run-{step}"
        seconds, found = start(dpo_config(work, model, [entry], place), place, ranks)
        took, model = took + seconds, place / "out"
        marks.append(found)
        if work.adapter is not None and step < len(entries):
            began = time.time()
            command = [sys.executable, "-m", "axolotl.cli.main", "merge-lora", str(place / "config.yaml")]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place)
            took, model = took + time.time() - began, place / "out" / "merged"
    return of(took, marks, model, work.micro_batch * ranks)


def sdpo_run(
    work: Workload,
    base: Path,
    entries: Sequence[Mapping[str, Any]],
    folder: Path,
    ranks: int,
    packed: bool | str,
    profile: Path | None = None,
    matrix: bool = False,
) -> Run:
    """The same as one `rl: sdpo` run."""
    config = sdpo_config(dpo_config(work, base, list(entries), folder), packed=packed, matrix=matrix)
    took, marks = start(config, folder, ranks, profile)
    return of(took, [marks], folder / "out", work.micro_batch * ranks)


def apart(one: Path, other: Path, base: Path) -> tuple[float, float]:
    """The largest difference of a weight between two models, and between the first and the base model."""
    from safetensors.torch import load_file

    first, second, began = (load_file(path / "model.safetensors") for path in (one, other, base))
    differences = [float((value.float() - second[name].float()).abs().max()) for name, value in first.items()]
    return max(differences), max(float((value.float() - began[name]).abs().max()) for name, value in first.items())


def shown(side: str, run: Run) -> str:
    """A line of the table."""
    speed = run.pairs / run.updating if run.updating else float("nan")
    return f"{side:<8} {run.wall:8.1f} s {speed:8.2f} pairs/s {run.memory:8.0f} MB"


def medians(side: str, runs: Sequence[Run], host: Sequence[Run]) -> str:
    """Medians of a side, and their ratios to the host's."""

    def median(number: Callable[[Run], float], of_runs: Sequence[Run]) -> float:
        return statistics.median(map(number, of_runs))

    numbers: list[Callable[[Run], float]] = [
        lambda run: run.wall,
        lambda run: run.pairs / max(run.updating, 1e-9),
        lambda run: run.memory,
    ]
    wall, speed, memory = (median(number, runs) for number in numbers)
    text = f"{side:<8} {wall:8.1f} s {speed:8.2f} pairs/s {memory:8.0f} MB"
    if host:
        of_host = [median(number, host) for number in numbers]
        text += "   of the host: " + ", ".join(
            f"{what} {value / other:.2f}"
            for what, value, other in zip(("wall", "pairs/s", "memory"), (wall, speed, memory), of_host, strict=True)
        )
    return text


def phases(run: Run) -> str:
    """Where the seconds of a run went, from mark to mark; the updates of a step are one line."""
    lines = []
    for marks in run.marks:
        before, updates = marks[0]["time"], 0
        for number, mark in enumerate(marks[1:], 1):
            if mark["event"] == "update" and marks[min(number + 1, len(marks) - 1)]["event"] == "update":
                updates += 1
                continue
            what = f"{updates + 1} updates" if mark["event"] == "update" else f"until {mark['event']}"
            lines.append(f"{mark['time'] - before:8.2f} s  {what}")
            before, updates = mark["time"], 0
        lines.append(f"{marks[0]['time'] + run.wall - before:8.2f} s  until the process has ended")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="25M", choices=SHAPES, help="size of the Llama")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--sets", default="hh,pandalm", help="the lengths of each step, comma-separated: T of them")
    parser.add_argument("--rows", type=int, default=80, help="pairs a step")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--adapter", choices=("lora",))
    parser.add_argument("--optimizer", default="adamw_torch", help="sgd amplifies no rounding: for comparing weights")
    parser.add_argument("--bf16", action="store_true", help="half precision, as a GPU trains")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument(
        "--sides", default="host,packed", help="of host, packed, padded, reported: packed, with the matrices"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="one packed run: where its time goes")
    given = parser.parse_args()
    if given.profile and given.ranks > 1:
        parser.error("--profile looks at one process: leave out --ranks")
    return given


def profiled(work: Workload, base: Path, entries: Sequence[Mapping[str, Any]], folder: Path, ranks: int) -> None:
    """One run's phases, then another one's costliest functions."""
    import pstats

    print(phases(sdpo_run(work, base, entries, folder / "phases", ranks, "auto")))
    sdpo_run(work, base, entries, folder / "profile", ranks, "auto", folder / "profile.out")
    stats = pstats.Stats(str(folder / "profile.out"))
    stats.sort_stats("tottime").print_stats(25)
    stats.sort_stats("cumulative").print_stats("sdpo_plugin", 25)


def main() -> None:
    """Make the workload, and run all sides of it in alternation."""
    given = options()
    sets = tuple(given.sets.split(","))
    work = Workload(
        given.model,
        given.vocabulary,
        sets,
        given.rows,
        given.micro_batch,
        given.epochs,
        given.adapter,
        given.optimizer,
        given.bf16,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = folder / "base"
        hosts = ", ".join(f"{name} {version(name)}" for name in ("axolotl", "trl", "transformers", "torch"))
        print(f"{hosts}, Python {platform.python_version()}\n{work}", flush=True)
        print(f"{make_model(base, work):,} parameters", flush=True)
        entries = [write_set(folder / f"D_{t}.jsonl", name, work, t) for t, name in enumerate(sets, 1)]
        if given.profile:
            profiled(work, base, entries, folder, given.ranks)
            return
        sides: dict[str, Callable[[Path], Run]] = {
            "host": lambda place: host_chain(work, base, entries, place, given.ranks),
            "packed": lambda place: sdpo_run(work, base, entries, place, given.ranks, "auto"),
            "padded": lambda place: sdpo_run(work, base, entries, place, given.ranks, False),
            "reported": lambda place: sdpo_run(work, base, entries, place, given.ranks, "auto", matrix=True),
        }
        runs: dict[str, list[Run]] = {side: [] for side in given.sides.split(",")}
        for _ in range(given.repeat):
            for side, of_side in runs.items():
                of_side.append(sides[side](folder / side))
                print(shown(side, of_side[-1]), flush=True)
            if "host" in runs and work.adapter is None:  # else no two runs draw the same adapter
                for side, of_side in runs.items():
                    off, moved = apart(runs["host"][-1].model, of_side[-1].model, base)
                    if side != "host":
                        print(
                            f"{side}: weights within {off:.1e} of the chain's; training moves them by up to {moved:.1e}"
                        )
            for side in runs:
                shutil.rmtree(folder / side)
        print("medians")
        for side, of_side in runs.items():
            print(medians(side, of_side, [] if side == "host" else runs.get("host", [])))
        print(f"the tokens allow {allowed(work):.2f} times the pairs/s of the host's chain")


if __name__ == "__main__":
    main()
