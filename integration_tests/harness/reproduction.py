"""The reproduction in seconds: its own code with a base model of a few updates and a few rows a source."""

from __future__ import annotations

from pathlib import Path


def shrunk(out: str, numbers: list[int]) -> dict[str, dict[str, float]]:
    """Figures by variant, for one seed, in the order run; the first variant once more as `again`."""
    from example_configs.reproduction import base, prepare
    from example_configs.reproduction.run import Reproduction
    from example_configs.reproduction.settings import CHOSEN
    from example_configs.reproduction.variants import VARIANTS

    base.UPDATES, base.WARMUP = 4, 2
    prepare.TRAINING_ROWS, prepare.HELD_OUT_ROWS = 32, 50
    runs = {VARIANTS[number].name: (VARIANTS[number], CHOSEN) for number in numbers}
    reproduction = Reproduction(Path(out))
    reproduction.run(0, runs)
    reproduction.run(0, runs | {"again": (VARIANTS[numbers[0]], CHOSEN)})
    return {name: by_seed["0"] for name, by_seed in reproduction.results.items()}
