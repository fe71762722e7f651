"""The paper's comparisons on a small scale: plain DPO and every partition, reference and start, on the toy task.

    python example_configs/quickstart/reproduce.py [--seeds 0 1 2] [--out outputs/reproduce]

Each variant sees each pair as often as every other one, with the same optimizer, batch and learning rate; a seed
changes the order of the rows and the random splits. Runs go through the host's own loader and trainer, one after the
other in this process (importing the host costs more than a run). Prints mean and spread over the seeds; what does not
agree with the paper is printed like the rest. About half a minute a run on two cores; variants x seeds runs.
"""

import argparse
import copy
import gc
import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import yaml
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_train
from gamma_and_accuracy import gamma_and_accuracy, read_rows

HERE = Path(__file__).parent
BUILD = Path("example_configs/quickstart/build")
TESTS = ("easy_test", "hard_test")
FRACTIONS = [1 / 3, 2 / 3]  # the sizes of the two sets, as the paper's 16.67 % and 83.33 % are those of its own
VARIANTS: dict[str, dict[str, Any]] = {
    "plain DPO on D_1 + D_2": {"sdpo": None},
    "sDPO, natural (easy first)": {"sdpo": {}},
    "sDPO, easy to hard by row": {
        "sdpo": {"partition": {"strategy": "easy_to_hard", "unit": "row", "fractions": FRACTIONS}}
    },
    "sDPO, random split": {"sdpo": {"partition": {"strategy": "random", "fractions": FRACTIONS}}},
    "sDPO, stratified split": {"sdpo": {"partition": {"strategy": "stratified", "fractions": FRACTIONS}}},
    "sDPO, reversed (hard first)": {"sdpo": {}, "reversed": True},
    "sDPO, reference: base": {"sdpo": {"reference": "base"}},
    "sDPO, policy_init: base": {"sdpo": {"policy_init": "base"}},
}


def config(variant: Mapping[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """The quickstart's config, changed for a variant."""
    cfg: dict[str, Any] = yaml.safe_load((HERE / "quickstart.yaml").read_text("utf-8"))
    cfg |= {"output_dir": str(out), "dataset_prepared_path": str(out.parent / "prepared"), "seed": seed}
    cfg.pop("test_datasets")  # evaluated below, alike for all variants
    block = copy.deepcopy(variant["sdpo"])
    if block is None:
        return cfg | {"rl": "dpo", "plugins": None}
    if block.get("partition", {}).get("strategy") in ("random", "stratified"):
        block["partition"]["seed"] = seed
    if variant.get("reversed"):
        cfg["datasets"] = cfg["datasets"][::-1]
    return cfg | {"sdpo": block}


def train(cfg: Mapping[str, Any]) -> None:
    """One run through the host, as `axolotl train` makes it."""
    path = Path(cfg["output_dir"]).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in cfg.items() if value is not None}), "utf-8")
    do_train(load_cfg(str(path)), TrainerCliArgs())
    gc.collect()


def measure(out: Path) -> dict[str, float]:
    """Held-out accuracy and mean γ of the final model."""
    numbers = {}
    for name in TESTS:
        mean_gamma, accuracy = gamma_and_accuracy(str(out), read_rows(BUILD / f"{name}.jsonl"))
        numbers |= {f"{name} accuracy": accuracy, f"{name} γ": mean_gamma}
    return numbers


def table(results: Mapping[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the seeds, one line a variant."""
    keys = [f"{name} {what}" for what in ("accuracy", "γ") for name in TESTS]
    lines = ["| variant | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    for variant, runs in results.items():
        cells = []
        for key in keys:
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every variant with every seed, and print and keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduce"))
    args = parser.parse_args()
    gc.collect()
    gc.freeze()  # the host's plain DPO collects garbage after every batch; with the imports frozen that is cheap
    base = [gamma_and_accuracy(str(BUILD / "base"), read_rows(BUILD / f"{name}.jsonl")) for name in TESTS]
    start = {f"{n} {what}": v for n, (g, a) in zip(TESTS, base, strict=True) for what, v in (("accuracy", a), ("γ", g))}
    results: dict[str, list[dict[str, float]]] = {"S, the base model": [start]}
    for variant, spec in VARIANTS.items():
        for seed in args.seeds:
            out = args.out / f"{list(VARIANTS).index(variant)}-seed-{seed}"
            train(config(spec, seed, out))
            results.setdefault(variant, []).append(measure(out))
            print(f"{variant}, seed {seed}: {results[variant][-1]}", flush=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=2), "utf-8")
    print(f"\n{len(args.seeds)} seeds: {args.seeds}\n\n{table(results)}")


if __name__ == "__main__":
    main()
