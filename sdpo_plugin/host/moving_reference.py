"""A reference that moves within a step: the log-probs that its batches are given, made again by the policy.

Batches are put together ahead of time, so they bring the numbers of their rows, which are looked up when they train.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.forward.log_probs import policy_log_probs
from sdpo_plugin.order import Int, Order, rows_by_update, spread
from sdpo_plugin.refresh import WINDOW, Refresh, RefreshRule, distance, half_mean_square, is_due, read_until
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.run_dir.table_files import load_table, save_table
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

Fill = Callable[[Int, int], LogProbTable]
"""Log-probs of some rows of D_t by the policy as it stands, after so many updates."""


@dataclass
class MovingReference:
    """The reference of one step while it trains, the same on every rank.

    Attributes:
        rule: when it is made again.
        num_updates: of the step.
        facts: keys and lengths of the rows of D_t.
        table: what batches are given; no number where no batch reads one.
        fill: makes it again.
        order: of the rows; None until the step trains.
        part: what was made last, of the rows that read it; None: the table that the step began with.
        made_at: updates that were made before that.
        estimates: of the distance between policy and reference since then, one an update, in nats an answer.
        refreshes: so far.
        seconds: that they took.
    """

    rule: RefreshRule
    num_updates: int
    facts: RowFacts
    table: LogProbTable
    fill: Fill
    order: Order | None = None
    part: LogProbTable | None = None
    made_at: int = 0
    estimates: list[float] = field(default_factory=list)
    refreshes: list[Refresh] = field(default_factory=list)
    seconds: float = 0.0
    _checked_at: int = 0
    _squares: float = 0.0
    _answers: int = 0

    # --- batches ---

    @property
    def is_watched(self) -> bool:
        """Whether its distance to the policy is estimated."""
        return self.rule.kl_above is not None

    def filled(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with the reference of its rows, whose numbers it has brought (``columns.with_row_numbers``)."""
        rows, device = inputs["ref_chosen_logps"].cpu().numpy(), inputs["ref_chosen_logps"].device
        found = {
            "ref_chosen_logps": torch.tensor(self.table.chosen[rows], device=device),
            "ref_rejected_logps": torch.tensor(self.table.rejected[rows], device=device),
        }
        return {**inputs, **found}

    def see(self, trainer: "DPOTrainer", outputs: Any, inputs: Mapping[str, Any]) -> None:
        """Take in how far the policy is from it on a batch that trains, whose forward pass is made already.

        Args:
            trainer: holds the policy.
            outputs: of the model.
            inputs: the batch, filled.
        """
        with torch.no_grad():  # TRL 1.9 takes gradients of what it makes of the outputs
            log_probs = policy_log_probs(trainer, lambda **_: outputs, inputs)  # type: ignore[arg-type]  # it is called
        reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        squares = (log_probs.double() - reference.double()) ** 2
        self._squares += float(squares.sum())
        self._answers += squares.numel()

    def must_be_checked(self, update: int) -> bool:
        """Whether the batch that trains is the first one after a refresh: asked once for each."""
        is_first = 0 < self.made_at == update and self._checked_at < update
        self._checked_at = max(self._checked_at, self.made_at)
        return is_first

    # --- refreshes ---

    def update_is_made(self) -> float:
        """Take in the distance on the rows of an update, of all ranks; it."""
        parts = ranks.gather([(self._squares, self._answers)])
        self._squares, self._answers = 0.0, 0
        found = half_mean_square(sum(squares for squares, _ in parts), sum(answers for _, answers in parts))
        self.estimates = [*self.estimates, found][-WINDOW:]
        return found

    def is_due(self, update: int) -> bool:
        """Whether it is made again before the next update."""
        return is_due(self.rule, update, self.made_at, self.num_updates, self.estimates)

    def refresh(self, update: int) -> Refresh:
        """Have it made again; it stays as it is where the pass is left.

        Args:
            update: updates that were made.

        Raises:
            ReferenceTableError: a log-prob is not finite.
        """
        began, rows = time.perf_counter(), self._rows(update)
        self._take(self.fill(rows, update), rows)
        made = Refresh(update, distance(self.estimates), len(rows))
        self.refreshes.append(made)
        self.made_at, self.estimates = update, []
        self.seconds += time.perf_counter() - began
        return made

    def order_is_known(self, order: Order) -> None:
        """The step is about to train, or to be resumed.

        Raises:
            ReferenceTableError: what was kept with the checkpoint is of other rows.
        """
        self.order = order
        if self.part is not None:
            rows = self._rows(self.made_at)
            self.part.require_rows(len(rows), self.facts.take(rows).digest())
            self._take(self.part, rows)

    def _rows(self, made_at: int) -> Int:
        assert self.order is not None, "the order is known before the first update"
        return self.order.rows(made_at, read_until(self.rule, made_at, self.num_updates))

    def _take(self, part: LogProbTable, rows: Int) -> None:
        self.part, self.table = part, spread(part, rows, len(self.facts))

    # --- checkpoints ---

    def kept(self) -> dict[str, Any]:
        """Facts for the seal of a checkpoint, which ``resume`` reads."""
        return {
            "made_at": self.made_at,
            "table": None if self.part is None else self.part.digest(),
            "estimates": self.estimates,
            "refreshes": [asdict(refresh) for refresh in self.refreshes],
            "seconds": self.seconds,
        }

    def save(self, checkpoint: Path) -> None:
        """Put the numbers that it trains with into a checkpoint; rank 0 does.

        Raises:
            OutputError: they could not be written.
        """
        part = self.part
        if part is not None:
            ranks.on_rank_0(lambda: save_table(part, table_in(checkpoint, self.made_at)))

    def resume(self, checkpoint: Path, kept: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            checkpoint: sealed, and whole.
            kept: what its seal says.

        Raises:
            ReferenceTableError: the table in it is not the one that its seal says.
        """
        self.made_at, self.seconds = kept["made_at"], kept["seconds"]
        self.estimates = list(kept["estimates"])
        self.refreshes = [Refresh(**refresh) for refresh in kept["refreshes"]]
        if self.made_at:
            path = table_in(checkpoint, self.made_at)
            self.part = ranks.on_rank_0(lambda: load_table(path))
            if self.part.digest() != kept["table"]:
                raise ReferenceTableError(
                    f"{path} is another table than the seal of its checkpoint says; remove {checkpoint}, and the step "
                    "resumes the one before it."
                )


def table_in(checkpoint: Path, made_at: int) -> Path:
    """The reference that a checkpoint trains with, where it was made after so many updates.

    In a folder of its own: some loaders take every safetensors file beside a model for a part of it.
    """
    return checkpoint / "sdpo" / f"reference-{made_at}.safetensors"


def read_order(make_loader: Callable[[], Any], num_rows: int, num_updates: int, accumulation: int) -> Order:
    """The order of the rows of a step, as its data loader will have it.

    Where the order is drawn when an epoch begins, out of random numbers that training uses too, two loaders differ, and
    it is not known. These numbers are given back.

    Args:
        make_loader: the host's data loader of the step.
        num_rows: of D_t.
        num_updates: of the step.
        accumulation: batches of a rank in an update.
    """
    state = torch.get_rng_state()
    loaders = make_loader(), make_loader()
    first, again = (_batches(loader, 0) for loader in loaders)
    epochs = [_by_update(first, accumulation)]
    while len(epochs) * len(epochs[0]) < num_updates:
        epochs.append(_by_update(_batches(loaders[0], len(epochs)), accumulation))
    torch.set_rng_state(state)
    return Order(num_rows, None if ranks.largest(int(first != again)) else epochs)


def _batches(loader: Any, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return [list(batch) for batch in loader.batch_sampler]


def _by_update(mine: list[list[int]], accumulation: int) -> list[Int]:
    return rows_by_update(ranks.gather([mine]), accumulation)
