"""What a trainer is given to run a chain: the sources, tokenized as the host tokenizes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.datasets import StepData, row_facts
from sdpo_plugin.host.heldout import merged
from sdpo_plugin.host.session import Session
from sdpo_plugin.ledger import RunDir

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why


@dataclass(frozen=True)
class Chain:
    """What the trainer needs beyond one data set.

    Attributes:
        cfg: the host's config.
        block: the `sdpo:` block.
        session: where the run writes, and where it begins.
        sources: data of each entry of `datasets:`, or of each of `sdpo.steps`, tokenized.
        heldout: the held-out sets by name, tokenized.
    """

    cfg: DictDefault
    block: SDPOConfig
    session: Session
    sources: Sequence[StepData]
    heldout: Mapping[str, Dataset]

    @property
    def run(self) -> RunDir:
        """Where the run writes."""
        return self.session.run


def tokenize(trainer: "DPOTrainer", sources: Sequence[StepData]) -> tuple[list[StepData], dict[str, Dataset]]:
    """Tokenize all sources and held-out sets before the first step trains, so that bad data ends the run early.

    Raises:
        DataError: no row of a set is short enough.
    """
    tokenized = []
    for index, source in enumerate(sources, 1):
        train = _prepare(trainer, source.train, f"source {index}", source.name)
        more = len(source.train) - len(train)  # a BOS can make a prompt too long that the host has kept
        dropped = None if source.num_dropped is None else source.num_dropped + more
        tokenized.append(replace(source, train=train, facts=row_facts(train), num_dropped=dropped))
    heldout = tokenize_heldout(trainer, sources)
    return [replace(source, heldout={name: heldout[name] for name in source.heldout}) for source in tokenized], heldout


def tokenize_heldout(trainer: "DPOTrainer", sources: Sequence[StepData]) -> dict[str, Dataset]:
    """The held-out sets of all steps by name, tokenized.

    Raises:
        DataError: no row of a set is short enough.
    """
    every = merged(source.heldout for source in sources)
    return {name: _prepare(trainer, rows, f"held-out {name}", f"held-out set {name}") for name, rows in every.items()}


def _prepare(trainer: "DPOTrainer", dataset: Dataset, what: str, name: str) -> Dataset:
    prepared = trainer._prepare_dataset(dataset, trainer.processing_class, trainer.args, what)
    if not len(prepared):
        raise DataError(
            f"{name}: no row has a prompt shorter than sequence_len: {trainer.args.max_length} in tokens; "
            "set a larger sequence_len or another source."
        )
    return prepared.flatten_indices() if prepared._indices is not None else prepared
