"""An uninterrupted run, and the same run killed at a chosen moment of its life and resumed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.data import Config, write_config
from integration_tests.harness.sdpo import sdpo_config
from integration_tests.harness.stored_weights import weights_digests

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host
    from integration_tests.harness.results import Result

PLUGINS = ["sdpo_plugin.SDPOPlugin", "integration_tests.harness.faults.FaultPlugin"]
# Kinds of moments, by what the run does then.
MOMENTS = {
    "reference pass": lambda event: event == "pass",
    "training": lambda event: event == "train",
    "checkpoint": lambda event: "/checkpoint-" in event,
    "export": lambda event: "sdpo/staging" in event,
    "bookkeeping": lambda event: any(name in event for name in ("ledger", "plan.json", "report", "safetensors")),
    "final save": lambda event: event.startswith(("open", "os.mkdir")) and "/" not in event,
}
TIMES = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds", "refresh_seconds")


@dataclass(frozen=True)
class Life:
    """An uninterrupted run: its config, its output directory, and every event of it, in order."""

    host: Host
    config: Config
    out: Path
    events: tuple[str, ...]
    ranks: int

    def moments(self, kind: str, number: int, seed: int = 0) -> list[int]:
        """Seeded random events of a kind, spread over its life: event numbers from 1."""
        found = [index for index, event in enumerate(self.events, 1) if MOMENTS[kind](event)]
        rng = random.Random(f"{kind} {seed}")
        bounds = [len(found) * part // number for part in range(number + 1)]
        return [rng.choice(found[low:high]) for low, high in itertools.pairwise(bounds)]

    @property
    def prepared(self) -> int:
        """The event with which the ledger vouches for M_0's adapter; a process before it draws one of its own."""
        _, prepared, *_ = [i for i, what in enumerate(self.events, 1) if what.startswith("os.rename sdpo/.ledger.json")]
        return prepared

    def die(self, folder: Path, *events: int) -> Path:
        """The same run in another directory, killed at an event; resumed and killed again at each further one."""
        config = write_config(folder / "config.yaml", {**self.config, "output_dir": str(folder / "out")})
        for seed, event in enumerate(events):
            result = train(self.host, config, f"die:{event}", self.ranks, seed)
            assert result.returncode != 0, f"the run was over before event {event}: {result.log_text[-2000:]}"
        return config

    def resume(self, config: Path, seed: int = 99) -> Path:
        """Finish a run that was killed. The process has other random numbers than the one that died."""
        train(self.host, config, "", self.ranks, seed).check()
        return config.parent / "out"


def live(host: Host, config: Mapping[str, Any], ranks: int = 1, **overrides: Any) -> Life:
    """Run a config to its end and note its life. Everything else that runs shares the data that it has prepared."""
    made = sdpo_config(config, auto_resume_from_checkpoints=True, **{"plugins": PLUGINS} | overrides)
    out = Path(made["output_dir"])
    notes = out.parent / "life"
    train(host, write_config(out.parent / "config.yaml", made), f"note:{notes}", ranks).check()
    return Life(host, made, out, tuple(notes.read_text(encoding="utf-8").splitlines()), ranks)


def train(host: Host, config: Path, fault: str = "", ranks: int = 1, seed: int = 0) -> Result:
    """`axolotl train` with a fault, on a process whose random numbers begin at `seed`."""
    return host.train(config, env={"SDPO_TEST_FAULT": fault or None}, ranks=ranks, init_seed=seed)


def outcome(host: Host, out: Path) -> dict[str, Any]:
    """All that two runs have to have in common: weights to the bit, tables, ledger and report, but for times."""
    ledger = json.loads((out / "sdpo" / "ledger.json").read_text(encoding="utf-8"))
    report = json.loads((out / "sdpo" / "report.json").read_text(encoding="utf-8"))
    records = ledger["records"]
    lives = [name for life in report.pop("lives") for name in life["steps"]]  # and when they began
    assert lives == [step["name"] for step in report["steps"]]
    kept = [step["name"] for step, record in zip(ledger["plan"]["steps"], records, strict=True) if record["kept"]]
    folders = [out, *(out / name for name in kept)]
    for step in [*records, *report["steps"]]:
        for key in TIMES:
            step.pop(key, None)
    return {
        "weights": weights_digests(folders),
        "config": [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*config.json"))],
        "tables": ledger["tables"],
        "plan": ledger["plan"],
        "records": records,
        "ends": [ledger["prepared"], ledger["finished"], ledger["saved"]],
        "report": report,
        "leftovers": sorted(str(path.relative_to(out)) for path in out.rglob("*") if "staging" in path.parts),
    }


def read_plan(out: Path) -> dict[str, Any]:
    """The plan of a run."""
    return dict(json.loads((out / "sdpo" / "plan.json").read_text(encoding="utf-8")))
