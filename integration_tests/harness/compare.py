"""An `rl: sdpo` run beside what it has to equal: the same chain made by hand of separate runs of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from integration_tests.harness.data import Config
from integration_tests.harness.host_runs import run_chain
from integration_tests.harness.sdpo import run_sdpo, sdpo_config
from integration_tests.harness.stored_weights import differences

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host

T = TypeVar("T")
CORES = 2  # a run keeps one busy


def at_once(*jobs: Callable[[], T]) -> list[T]:
    """Do independent jobs side by side; return what each gave, in order."""
    with ThreadPoolExecutor(CORES) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@dataclass(frozen=True)
class Compared:
    """Output directory of an `rl: sdpo` run, and the model directories of the separate `rl: dpo` runs."""

    out: Path
    chain: list[Path]

    @property
    def steps(self) -> list[Path]:
        """The exported M_1 … M_T."""
        return [self.out / f"step-{number}" for number in range(1, len(self.chain) + 1)]


def compare(
    host: Host, config: Mapping[str, Any], datasets: Sequence[Config], steps: Sequence[Mapping[str, Any]] = ()
) -> Compared:
    """Run a config both ways; with `steps`, the overrides of each step, the data go into `sdpo.steps`.

    An override of None takes the key out of the host's config of that step, and says nothing in `sdpo.steps`.
    """
    made = sdpo_config(config)
    if steps:
        block = [{**step, "datasets": [dict(entry)]} for step, entry in zip(steps, datasets, strict=True)]
        made = sdpo_config(config, datasets=None, sdpo={**config.get("sdpo", {}), "steps": block})
    folder = Path(config["output_dir"]).parent
    out, chain = at_once(
        lambda: [run_sdpo(host, made)], lambda: run_chain(host, config, datasets, folder / "by-hand", steps)
    )
    return Compared(out[0], chain)


def apart(one: Path, other: Path, how: str = "max") -> float:
    """How far two models are apart: the largest ("max") or the mean ("mean") absolute difference of a weight.

    They are read from disk; the host that has made them is not asked.
    """
    return differences(one, other)[how]
