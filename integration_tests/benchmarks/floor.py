"""How fast the products of a packed pair could be on this machine, were there nothing else: a bound for pairs a second.

    python -m integration_tests.benchmarks.floor --model 25M --rows 80 --micro-batch 4

Every product of the linear layers and of the head, forward once and backward twice, for each micro-batch of the
workload, with as many tokens as it has packed. No attention scores, norms, loss or optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from integration_tests.benchmarks.tokens import micro_batches, packed
from integration_tests.benchmarks.workload import SHAPES

VOCABULARY = 4096


def shapes(model: str) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear layer of the Llama, but for the head."""
    hidden, layers, _, intermediate = SHAPES[model]
    block = [(hidden, hidden)] * 4 + [(hidden, intermediate)] * 2 + [(intermediate, hidden)]
    return block * layers


def products(model: str, tokens: int, answers: int) -> float:
    """Seconds of one micro-batch: y = x w, and of its gradient that of x and of w."""
    hidden, seconds = SHAPES[model][0], 0.0
    for inputs, outputs, rows in [(*shape, tokens) for shape in shapes(model)] + [(hidden, VOCABULARY, answers)]:
        x, w = torch.ones(rows, inputs), torch.ones(inputs, outputs)
        began = time.perf_counter()
        y = x @ w
        _ = y @ w.T, x.T @ y
        seconds += time.perf_counter() - began
    return seconds


def main() -> None:
    """Medians over repetitions of all micro-batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="25M", choices=SHAPES)
    parser.add_argument("--sets", default="hh,pandalm")
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    batches = micro_batches(given.sets.split(","), given.rows, given.micro_batch)
    sizes = [(packed(batch), sum(chosen + rejected for _, chosen, rejected in batch)) for batch in batches]
    seconds = [sum(products(given.model, *size) for size in sizes) for _ in range(given.repeat)]
    pairs = sum(map(len, batches))
    print(f"{pairs / statistics.median(seconds):.2f} pairs/s, were there nothing but products")


if __name__ == "__main__":
    main()
