"""The results of a reproduction as a table."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from example_configs.reproduction.intervals import estimate, paired

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # by variant, seed (as text), figure
MAIN = "reference_free_accuracy"
HEAD = (
    "| variant | reference-free accuracy, held out | difference to {plain} | implicit reward accuracy, held out "
    "| mean γ, held out | seeds |\n|---|---|---|---|---|---|"
)


def markdown(results: Results, plain: str) -> str:
    """A line for each variant: means over its seeds with 95 % intervals, and the paired difference to `plain`.

    A difference whose interval leaves out 0 is in bold. The difference is of the seeds that both have.
    """
    lines = [HEAD.format(plain=plain)]
    for name, by_seed in results.items():
        of = {key: estimate([by_seed[seed][key] for seed in by_seed]) for key in (MAIN, "gamma")}
        implicit = estimate([run["implicit_reward_accuracy"] for run in by_seed.values()])
        cells = [
            name,
            f"{of[MAIN].mean:.3f} ± {of[MAIN].half:.3f}",
            "" if name == plain else difference(by_seed, results.get(plain, {})),
            "" if implicit.mean == 0 else f"{implicit.mean:.3f} ± {implicit.half:.3f}",
            f"{of['gamma'].mean:+.2f} ± {of['gamma'].half:.2f}",
            str(len(by_seed)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(by_seed: Mapping[str, Mapping[str, float]], plain: Mapping[str, Mapping[str, float]]) -> str:
    """The paired difference in the main figure as a cell."""
    both = [seed for seed in by_seed if seed in plain]
    if not both:
        return ""
    found = paired([by_seed[seed][MAIN] for seed in both], [plain[seed][MAIN] for seed in both])
    text = f"{found.mean:+.3f} ± {found.half:.3f}"
    return f"**{text}**" if found.excludes_zero else text


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(
            "python -m example_configs.reproduction.table RESULTS.json 'name of the variant to compare with'"
        )
    print(markdown(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2]))
