"""Choose the settings of the comparison: plain DPO alone, on seeds that the comparison does not use.

    python -m example_configs.reproduction.choose [--seeds 100 101 102] [--epochs 1]

No stepwise variant is trained here. The rule: the learning rate with which plain DPO has the highest mean
reference-free accuracy on held-out rows, as long as that is between 0.7 and 0.9. Whom that favours is plain DPO.
"""

import argparse
from itertools import product
from pathlib import Path

from example_configs.reproduction.run import BASE, Reproduction
from example_configs.reproduction.table import markdown
from example_configs.reproduction.variants import VARIANTS, Settings

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def main() -> None:
    """Train plain DPO with every setting and seed, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduction-settings"))
    args = parser.parse_args()
    reproduction = Reproduction(args.out)
    grid = [Settings(learning_rate=rate, num_epochs=epochs) for rate, epochs in product(LEARNING_RATES, args.epochs)]
    names = {f"learning rate {one.learning_rate:g}, {one.num_epochs} epochs": one for one in grid}
    for seed in args.seeds:
        reproduction.run(seed, {name: (VARIANTS[0], settings) for name, settings in names.items()})
    print("\n" + markdown(reproduction.results, BASE))


if __name__ == "__main__":
    main()
