"""What a trainer is given to run a chain: the sources, tokenized as the host's constructor tokenizes the first one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.datasets import StepData, row_facts
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
    """Tokenize all sources and held-out sets before the first step trains, so that bad data ends the run early."""
    heldout: dict[str, Dataset] = {}
    tokenized = []
    for index, source in enumerate(sources):
        train = trainer.train_dataset if index == 0 else source.train
        train = _prepare(trainer, train, f"source {index + 1}")
        if not len(train):
            raise DataError(
                f"{source.name}: no row has a prompt shorter than sequence_len: {trainer.args.max_length} in tokens; "
                "set a larger sequence_len or another source."
            )
        tokenized.append(replace(source, train=train, facts=row_facts(train)))
        for name, rows in source.heldout.items():
            if name not in heldout:
                heldout[name] = _prepare(trainer, rows, f"held-out {name}")
    return tokenized, heldout


def _prepare(trainer: "DPOTrainer", dataset: Dataset, what: str) -> Dataset:
    """TRL leaves alone what is tokenized already."""
    prepared = trainer._prepare_dataset(dataset, trainer.processing_class, trainer.args, what)
    return prepared.flatten_indices() if prepared._indices is not None else prepared
