"""Print what a quickstart run did, each model loaded from its directory and evaluated by transformers alone.

    python example_configs/quickstart/summary.py [OUTPUT_DIR]

γ = log p(chosen | prompt) − log p(rejected | prompt); accuracy is the share of rows with γ > 0. D_1 and D_2 are the
rows of the two steps; on them γ under M_(t-1) is the γ_ref of step t.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from gamma_and_accuracy import gamma_and_accuracy, read_rows
from transformers.utils import logging

logging.disable_progress_bar()

BUILD = Path("example_configs/quickstart/build")


def models(output_dir: Path) -> dict[str, str]:
    """The base model and the model of each step, by name."""
    report = json.loads((output_dir / "sdpo" / "report.json").read_text("utf-8"))
    steps = {f"M_{step['index']}": str(output_dir / step["model_dir"]) for step in report["steps"]}
    return {"S": report["base_model"], **steps}


def main(output_dir: Path) -> None:
    """Print the table of steps, when all is evaluated: libraries that are loaded for it print warnings."""
    easy, hard = read_rows(BUILD / "easy_test.jsonl"), read_rows(BUILD / "hard_test.jsonl")
    d_2 = read_rows(BUILD / "hard.jsonl")
    lines = [
        "                     held-out accuracy      mean γ, held out       mean γ",
        "model  trained on     easy       hard       easy       hard       on D_2",
    ]
    for (name, directory), data in zip(models(output_dir).items(), ("-", "D_1, easy", "D_2, hard"), strict=True):
        easy_gamma, easy_accuracy = gamma_and_accuracy(directory, easy)
        hard_gamma, hard_accuracy = gamma_and_accuracy(directory, hard)
        lines.append(
            f"{name:<6} {data:<13} {easy_accuracy:5.3f}      {hard_accuracy:5.3f}     {easy_gamma:+6.2f}     "
            f"{hard_gamma:+6.2f}      {gamma_and_accuracy(directory, d_2)[0]:+6.2f}"
        )
    print("\n" + "\n".join(lines))
    print("\nS: the base model. M_1, M_2: after steps 1 and 2. Accuracy: share of pairs with the preferred answer more")
    print("probable than the other. γ: how much more, log p(preferred) - log p(other), in nats.")
    print(f"The whole report: {output_dir / 'sdpo' / 'report.md'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs/quickstart"))
