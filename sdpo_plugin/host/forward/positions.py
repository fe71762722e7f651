"""Rows that are longer than a model has positions for; hours later they would end the run in an IndexError.

Which models have a limit is seen from what they do, not from their names: while one short row goes through the model,
its tables of positions are those that are read at consecutive places, one a token.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.columns import row_facts
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.engines.engine import ready_model
from sdpo_plugin.host.engines.weights import whole_size
from sdpo_plugin.host.forward.log_probs import policy_log_probs
from sdpo_plugin.host.forward.rotary import require_own_positions
from sdpo_plugin.partition_args import PartitionArgs

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

PROBE = 5  # tokens of the short row
MOST_SKIPPED = 64  # more places than any model leaves unused at the beginning of its table (OPT: 2)


def check_positions(
    trainer: "DPOTrainer",
    sources: Sequence[TokenizedSource],
    block: SDPOConfig,
    reference: torch.nn.Module | None = None,
    what: str = "the model",
) -> None:
    """Refuse rows that the model has no positions for, before anything is computed.

    Args:
        trainer: knows model, collator and ranks.
        sources: of the run, with their held-out sets.
        block: the `sdpo:` block.
        reference: another model than the policy.
        what: how a message calls the model.

    Raises:
        DataError: it names the set, the length and the size of the table, or the length beyond which positions are
            scaled by the longest row of a batch.
    """
    model = reference if reference is not None else trainer.model
    cut: dict[str, NDArray[np.int64]] = {}
    for lengths, batch_sizes in _sharing_batches(sources, block.partition):
        # Several GPUs of one process part a pair.
        alone = block.packed is False and batch_sizes == {1} and trainer.args.n_gpu <= 1
        require_own_positions(model, lengths, what, alone=alone)
        cut |= lengths
    if not _may_be_too_small(model, max(int(found.max()) for found in cut.values())):
        return
    limit = _limit(trainer, reference)
    if limit is not None:
        for name, found in cut.items():
            _require_short(name, found, limit, what)


def _sharing_batches(
    sources: Sequence[TokenizedSource], parted: PartitionArgs | None
) -> Iterator[tuple[dict[str, NDArray[np.int64]], set[int]]]:
    """Sets of which rows may be in one batch: their lengths by name, as they are cut, and the sizes of the batches."""
    one_pool, each = [list(sources)], [[source] for source in sources]
    for together in one_pool if parted is not None and parted.cuts_rows else each:
        train = {s.name: np.minimum(s.facts.lengths, s.cfg.sequence_len) for s in together if not s.is_awaited}
        if train:
            yield train, _batch_sizes(together)
    for together in one_pool if parted is not None and parted.strategy != "natural" else each:
        heldout = {
            f"held-out {name}": np.minimum(row_facts(rows).lengths, source.cfg.sequence_len)
            for source in together
            for name, rows in source.heldout.items()
        }
        if heldout:
            yield heldout, _batch_sizes(together)


def _batch_sizes(sources: Sequence[TokenizedSource]) -> set[int]:
    return {size for source in sources for size in (source.cfg.micro_batch_size, source.cfg.eval_batch_size)}


def _require_short(name: str, lengths: NDArray[np.int64], limit: int, what: str) -> None:
    too_long = int((lengths > limit).sum())
    if too_long:
        raise DataError(
            f"{name}: {too_long:,} of {len(lengths):,} rows are longer than {what} has positions for: its table has "
            f"{limit:,} places, and the longest row has {int(lengths.max()):,} tokens; set sequence_len: {limit}, with "
            "which the host leaves longer rows out, or take a model with more positions."
        )


def _may_be_too_small(model: torch.nn.Module, longest: int) -> bool:
    """Whether the model has any table that could be one of positions, and ends before the longest row does."""
    tokens = model.get_input_embeddings()
    embeddings = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not tokens]
    sizes = [whole_size(weight)[0] for weight in embeddings]
    sizes += [max(buffer.shape) for buffer in model.buffers() if buffer.dim() > 1]
    return any(size < longest + MOST_SKIPPED for size in sizes)


def _limit(trainer: "DPOTrainer", reference: torch.nn.Module | None) -> int | None:
    token = 0 if trainer.processing_class.pad_token_id != 0 else 1
    answer = [token] * (PROBE - 1)
    row = {"prompt_ids": [token], "chosen_ids": answer, "rejected_ids": answer}
    inputs = trainer._prepare_inputs(trainer.padded_collator([row]))
    model = reference if reference is not None else trainer.model
    with ready_model(trainer, reference) as ready:
        return position_limit(model.config, lambda: policy_log_probs(trainer, ready, inputs))


def position_limit(config: Any, forward: Callable[[], Any]) -> int | None:
    """The number of tokens that a row may have; None where there is no table of positions.

    Args:
        config: of the model; it says how long a table is that is no parameter.
        forward: one pass of rows that each are one token, ``PROBE`` times.
    """
    seen = _TablesOfPositions(getattr(config.get_text_config(), "max_position_embeddings", None))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), seen:
        forward()
    return min(seen.limits, default=None)


class _TablesOfPositions(TorchFunctionMode):
    """Notes every table that is read at consecutive places while all tokens are the same.

    An embedding cannot grow. Sines that are computed in advance are looked up by other functions, as much else is, and
    some models compute more of them for longer rows: such a table counts where it is as long as the config says.
    """

    def __init__(self, size_in_config: int | None) -> None:
        super().__init__()
        self.limits: list[int] = []
        self._size_in_config = size_in_config

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is embedding:
            self._note(args[0], args[1].shape[0])
        elif function in (torch.gather, torch.Tensor.gather) and len(args) == 3:
            table, dim, index = args
            self._note_fixed(index.movedim(dim, -1), table.shape[dim])
        elif function is torch.Tensor.__getitem__:
            index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            if isinstance(index, torch.Tensor) and args[0].dim():
                self._note_fixed(index, args[0].shape[0])
        return function(*args, **(kwargs or {}))

    def _note_fixed(self, index: torch.Tensor, size: int) -> None:
        if size == self._size_in_config:
            self._note(index, size)

    def _note(self, index: torch.Tensor, size: int) -> None:
        """The first row begins at place ``first`` of the table: the places before it are never used."""
        places = index.reshape(-1)[:PROBE].tolist()
        first = places[0] if places else 0
        if places == list(range(first, first + PROBE)):
            self.limits.append(size - first)
