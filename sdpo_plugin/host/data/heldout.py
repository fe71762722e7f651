"""Held-out sets of a run: one name for one set, whichever steps evaluate on it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from axolotl.utils.dict import DictDefault
from datasets import Dataset


class HeldOut(Protocol):
    """A step or a source: its config, and its held-out sets by name."""

    @property
    def cfg(self) -> DictDefault: ...

    @property
    def heldout(self) -> Mapping[str, Dataset]: ...


@dataclass
class HeldoutSets:
    """Entries of `test_datasets`, each loaded once.

    Attributes:
        taken: names of sets that a step splits off its own rows. Known before anything is loaded, so that a name does
            not depend on the order of the steps.
        sets: entry and rows of each set, by name.
    """

    taken: Sequence[str] = ()
    sets: dict[str, tuple[dict[str, Any], Dataset]] = field(default_factory=dict)

    def find(self, entry: Mapping[str, Any]) -> str | None:
        """The name of an entry that another step has named too."""
        return next((name for name, (other, _) in self.sets.items() if other == dict(entry)), None)

    def add(self, entry: Mapping[str, Any], rows: Dataset, step: str) -> str:
        """Take in a set that ``step`` is the first to name; return its name, after its file."""
        name = named_after(entry, {*self.taken, *self.sets}, step)
        self.sets[name] = (dict(entry), rows)
        return name


def named_after(entry: Mapping[str, Any], taken: Collection[str], otherwise: str) -> str:
    """A name of its own for an entry, after its file or directory; ``otherwise`` where that has none."""
    wanted = Path(urlsplit(str(entry.get("path"))).path).stem or otherwise
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def merged(sets: Iterable[Mapping[str, Dataset]]) -> dict[str, Dataset]:
    """The held-out sets of several steps as one; a name stands for the same rows wherever it is met."""
    every: dict[str, Dataset] = {}
    for named in sets:
        for name, rows in named.items():
            assert every.setdefault(name, rows) is rows, f"two held-out sets are called {name}"
    return every


def heldout_cfgs(sources: Iterable[HeldOut]) -> dict[str, DictDefault]:
    """By the name of each held-out set, the config of the step that evaluates on it; of several, that of the smallest
    batches. All of them cut its rows, and weight their tokens, alike."""
    found: dict[str, DictDefault] = {}
    for source in sorted(sources, key=lambda source: int(source.cfg.eval_batch_size)):
        for name in source.heldout:
            found.setdefault(name, source.cfg)
    return found
