"""The paper's comparisons on a task with noisy labels, in one process: see docs/reproduction.md.

    python -m example_configs.reproduction.run [--seeds 0 1 2 3 4] [--out outputs/reproduction]

Run it from the root of the repository. What was measured is kept in OUT/results.json, run by run, and not measured
again. Other settings need another OUT.
"""

import argparse
import dataclasses
import gc
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

# One thread: the model is too small for two, and sums come out the same on every run.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import yaml
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_train

from example_configs.reproduction.measure import encode_rows, figures, gammas
from example_configs.reproduction.prepare import prepare
from example_configs.reproduction.settings import CHOSEN
from example_configs.reproduction.table import markdown
from example_configs.reproduction.variants import NATURAL, VARIANTS, Settings, Variant, config

Results = dict[str, dict[str, dict[str, float]]]  # by variant, then by seed
BASE = "S, the base model"
DATA = Path("outputs/reproduction-data")  # by seed, for runs with any settings


def train(cfg: dict[str, Any]) -> float:
    """One run through the host, as `axolotl train` makes it; the seconds that it took."""
    out = Path(cfg["output_dir"])
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(cfg), "utf-8")
    gc.collect()
    gc.freeze()  # the host's plain DPO collects garbage after every batch; with what is loaded frozen that is cheap
    began = time.perf_counter()
    do_train(load_cfg(str(path)), TrainerCliArgs())
    return time.perf_counter() - began


class Reproduction:
    """Runs of some seeds below one folder, with all that was measured."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.out.mkdir(parents=True, exist_ok=True)
        self.results: Results = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else {}

    @property
    def _path(self) -> Path:
        return self.out / "results.json"

    def _has(self, name: str, seed: int) -> bool:
        return str(seed) in self.results.get(name, {})

    def _keep(self, name: str, seed: int, measured: dict[str, float]) -> None:
        self.results.setdefault(name, {})[str(seed)] = measured
        self._path.write_text(json.dumps(self.results, indent=1), "utf-8")
        print(f"MEASURED {name}, seed {seed}: {json.dumps(measured)}", flush=True)

    def run(self, seed: int, runs: dict[str, tuple[Variant, Settings]]) -> None:
        """Train and measure what this seed lacks; the models are removed when they have been measured."""
        if all(self._has(name, seed) for name in (BASE, *runs)):
            return
        folder, began = DATA / f"seed-{seed}", time.perf_counter()
        accuracies = prepare(folder, seed)["accuracy_on_training_rows"]
        seconds = time.perf_counter() - began
        encoded = encode_rows(folder, "_test", list(NATURAL))
        base = gammas(folder / "base", folder, encoded)
        if not self._has(BASE, seed):
            self._keep(BASE, seed, figures(base, base) | {"seconds": seconds})
        out = self.out / "run"
        for name, (variant, settings) in runs.items():
            if not self._has(name, seed):
                shutil.rmtree(out, ignore_errors=True)
                seconds = train(config(variant, settings, seed, folder, out, accuracies))
                self._keep(name, seed, figures(gammas(out, folder, encoded), base) | {"seconds": seconds})


def main() -> None:
    """Run every variant with every seed, and print and keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--learning-rate", type=float, default=CHOSEN.learning_rate)
    parser.add_argument("--variants", type=int, nargs="+", default=range(len(VARIANTS)), help="by number, from 0")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduction"))
    args = parser.parse_args()
    settings = dataclasses.replace(CHOSEN, learning_rate=args.learning_rate)
    variants = [VARIANTS[number] for number in args.variants]
    reproduction = Reproduction(args.out)
    for seed in args.seeds:  # a comparison that is cut short has whole seeds
        reproduction.run(seed, {variant.name: (variant, settings) for variant in variants})
    print("\n" + markdown(reproduction.results, VARIANTS[0].name))


if __name__ == "__main__":
    main()
