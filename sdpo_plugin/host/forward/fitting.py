"""Rows that the model can compute: it has embeddings and positions for all of their tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.forward.positions import check_positions
from sdpo_plugin.host.forward.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why


def require_fitting_rows(trainer: "DPOTrainer", sources: Sequence[TokenizedSource], block: SDPOConfig) -> None:
    """Refuse rows that the model cannot take, held-out ones too.

    Args:
        trainer: knows the model.
        sources: of the run, or rows that have come to it.
        block: the `sdpo:` block.

    Raises:
        DataError: a row has token ids or positions that it does not have, or positions that depend on other rows.
    """
    check_vocabulary(trainer, sources)
    check_positions(trainer, sources, block)
