"""Make the quickstart's base model and preference sets, on the spot and from a seed.

    python example_configs/quickstart/make_task.py [--out DIR] [--seed N] [--force]

Writes into DIR: base/ (tokenizer and model), easy.jsonl, hard.jsonl (one step each),
easy_test.jsonl, hard_test.jsonl (held out) and stamp.json (what they were made from).
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from base_model import SFTSettings, build_tokenizer, train_base
from task import EASY, HARD, SLIP_RATE, PreferenceRow, TaskGenerator

SETS = {  # file name -> (difficulty, rows); the held-out sets end in _test
    "easy_test": (EASY, 400),
    "hard_test": (HARD, 400),
    "easy": (EASY, 800),
    "hard": (HARD, 1600),
}


def stamp_of(settings: SFTSettings) -> dict[str, Any]:
    """Return, as JSON types, the settings that the result depends on."""
    settings_of_run = {
        "sft": asdict(settings),
        "slip_rate": SLIP_RATE,
        "sets": {name: [asdict(kind), rows] for name, (kind, rows) in SETS.items()},
    }
    stamp: dict[str, Any] = json.loads(json.dumps(settings_of_run))
    return stamp


def is_built(out: Path, stamp: dict[str, Any]) -> bool:
    """Tell whether `out` already holds what `stamp` describes."""
    path = out / "stamp.json"
    return path.is_file() and bool(json.loads(path.read_text("utf-8")) == stamp)


def write_rows(path: Path, rows: list[PreferenceRow]) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print(f"wrote {path}: {len(rows)} rows")


def build(out: Path, settings: SFTSettings) -> None:
    """Make the preference sets and the base model; the stamp comes last."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "stamp.json").unlink(missing_ok=True)
    generator = TaskGenerator(settings.seed)
    for name, (difficulty, count) in SETS.items():
        write_rows(out / f"{name}.jsonl", generator.preference_rows(difficulty, count))
    tokenizer = build_tokenizer()
    model = train_base(generator, tokenizer, settings)
    model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    print(f"wrote {out / 'base'}: {model.num_parameters():,} parameters")
    (out / "stamp.json").write_text(json.dumps(stamp_of(settings), indent=2), "utf-8")


def main() -> None:
    """Parse the command line and build what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path("example_configs/quickstart/build")
    parser.add_argument("--out", type=Path, default=default, help="output folder")
    parser.add_argument("--seed", type=int, default=SFTSettings.seed)
    parser.add_argument("--force", action="store_true", help="build again")
    args = parser.parse_args()
    settings = SFTSettings(seed=args.seed)
    if not args.force and is_built(args.out, stamp_of(settings)):
        print(f"{args.out} is up to date; --force builds it again")
        return
    build(args.out, settings)


if __name__ == "__main__":
    main()
