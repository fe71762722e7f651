"""What the lengths of real pairs say by themselves: `python -m integration_tests.benchmarks.tokens`.

How many tokens a padded batch has for each token of a packed one, by micro-batch; how much of that is the prompt, and
how much padding; how long ranks wait for the one whose batch is largest. Counts tokens, runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean
from typing import TypeVar

from integration_tests.benchmarks.workload import LENGTHS, Workload

MICRO_BATCHES, RANKS = (1, 2, 4, 8, 16), (2, 8, 64)
MARKUP = 5  # tokens that the chat template puts around a prompt
Pair = Sequence[int]
T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Items in order, ``size`` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def padded(batch: Sequence[Pair]) -> int:
    """Two rows a pair, each as long as the longest."""
    return 2 * len(batch) * max(prompt + max(chosen, rejected) for prompt, chosen, rejected in batch)


def unpadded(batch: Sequence[Pair]) -> int:
    """The prompt with each answer."""
    return sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in batch)


def packed(batch: Sequence[Pair]) -> int:
    """The prompt once."""
    return sum(map(sum, batch))


def waiting(tokens: Sequence[int], ranks: int) -> float:
    """The largest of each ``ranks`` batches in turn, over their mean: 1 where no rank waits."""
    together = [group for group in batched(tokens, ranks) if len(group) == ranks]
    return mean(map(max, together)) / mean(tokens) if together else float("nan")


def micro_batches(sets: Sequence[str], rows: int, micro_batch: int) -> list[Sequence[Pair]]:
    """Those of a workload: the tokens of each pair, with what the chat template adds."""
    lengths, found = json.loads(LENGTHS.read_text(encoding="utf-8")), []
    for name in sets:
        pairs = [(prompt + MARKUP, chosen + 1, rejected + 1) for prompt, chosen, rejected in lengths[name]]
        found += batched([pairs[number % len(pairs)] for number in range(rows)], micro_batch)
    return found


def allowed(work: Workload) -> float:
    """Pairs a second of packed rows against the host's, were time proportional to tokens.

    The host trains on padded rows (three times the work of a forward pass) and computes the reference with them; packed
    rows are trained on, and their reference is in a table.
    """
    found = micro_batches(work.sets, work.rows, work.micro_batch)
    return 4 / 3 * sum(map(padded, found)) / sum(map(packed, found))


def main() -> None:
    """A table for each set."""
    for name, pairs in json.loads(LENGTHS.read_text(encoding="utf-8")).items():
        prompt, chosen, rejected = (mean(pair[side] for pair in pairs) for side in range(3))
        print(f"{name}: {len(pairs)} pairs, mean tokens {prompt:.0f} + {chosen:.0f} + {rejected:.0f}")
        print("micro-batch  padded/packed  of it padding  of it prompt" + "".join(f"  {r:>2} ranks" for r in RANKS))
        for size in MICRO_BATCHES:
            batches = batched(pairs, size)
            sums = [sum(map(count, batches)) for count in (padded, unpadded, packed)]
            waits = "".join(f"{waiting(list(map(packed, batches)), ranks):10.2f}" for ranks in RANKS)
            print(f"{size:>11} {sums[0] / sums[2]:>14.2f} {sums[0] / sums[1]:>14.2f} {sums[1] / sums[2]:>13.2f}{waits}")
        print()


if __name__ == "__main__":
    main()
