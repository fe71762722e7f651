"""The model in memory as lm-eval takes one, on every rank: rank 0 runs the harness, all ranks compute their share.

lm-eval's own way with several ranks is not taken: it would load the model itself, meets in collectives that NCCL ends
after `ddp_timeout`, reads the data on every rank, and adds up the answers in another order. Here the requests of rank 0
go to all ranks, and all answers come back, by the group in which ranks may wait for long.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from sdpo_plugin.batches import shares
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.evaluation.attempt import AttemptFailedError, attempt
from sdpo_plugin.host.evaluation.turns import DONE, FAILED, WORKING, Turns

Arguments = tuple[Any, ...]  # of a request: a context, and what is asked of it


@dataclass(frozen=True)
class Request:
    """A request of the harness, as far as a model reads it."""

    args: Arguments


class SharedLM(HFLM):  # type: ignore[misc]  # lm-eval ships no types
    """lm-eval's model, whose requests are shared among the ranks.

    A rank that is done with its share waits for the others and, where the model is sharded, takes part in their passes.

    Args:
        model: ready for forward passes, in evaluation mode.
        tokenizer: of the run; it is copied.
        batch_size: sequences in a batch on each rank.
        device: of the inputs.
        is_sharded: a forward pass is a collective of all ranks.
        end_if_asked: called by every rank before each batch; it may end the run.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        batch_size: int,
        device: torch.device,
        is_sharded: bool,
        end_if_asked: Callable[[], None],
    ) -> None:
        super().__init__(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size)
        self._device = device
        self._rank, self._num_ranks = ranks.place()
        self._is_sharded = is_sharded and self._num_ranks > 1
        self._turns = Turns(end_if_asked)

    # --- rank 0, which the harness calls ---

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._ask_all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._ask_all("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._ask_all("generate_until", requests)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the harness would ask the hub for a model that is in memory."""
        return {}

    def _ask_all(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        arguments = [request.args for request in requests]
        ranks.on_rank_0(lambda: (kind, arguments))
        return self._answers(kind, arguments)

    def let_go(self) -> None:
        """The harness has no more requests."""
        ranks.on_rank_0(lambda: None)

    # --- the other ranks ---

    def serve(self) -> None:
        """Compute this rank's share of whatever the harness asks, until rank 0 lets go."""
        while (work := ranks.on_rank_0(_nothing)) is not None:
            with suppress(AttemptFailedError):  # rank 0 has the same, and says so
                self._answers(*work)

    # --- every rank ---

    def _answers(self, kind: str, arguments: Sequence[Arguments]) -> list[Any]:
        """All answers, in order.

        Raises:
            AttemptFailedError: a rank has failed.
        """
        rows = shares([str(argument[0]) for argument in arguments], self._num_ranks)[self._rank]
        self._turns.begin()
        found, error = attempt(lambda: self._compute(kind, [Request(arguments[row]) for row in rows]))
        if self._turns.is_over:  # another rank has failed, and this one knows
            error = None
        while not self._turns.is_over:
            if self._turns.take(DONE if error is None else FAILED) == WORKING and self._is_sharded:
                self._take_part(kind)
        answers: dict[int, Any] = {}
        for rank, (their_rows, theirs, their_error) in enumerate(ranks.gather([(rows, found, error)])):
            if their_error is not None:
                raise AttemptFailedError(their_error if self._num_ranks == 1 else f"rank {rank}: {their_error}")
            answers |= zip(their_rows, theirs or [], strict=False)
        return [answers[row] for row in range(len(arguments))]

    def _compute(self, kind: str, requests: list[Request]) -> list[Any]:
        if not requests:
            return []
        answers: list[Any] = getattr(HFLM, kind)(self, requests, disable_tqdm=self._rank != 0)
        return answers

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._begin_batch()
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._begin_batch()
        if self._is_sharded:
            kwargs["synced_gpus"] = True  # no rank leaves before all have come to their last token
        return super()._model_generate(context, *args, **kwargs)

    def _begin_batch(self) -> None:
        if self._turns.take(WORKING) == FAILED:
            raise AttemptFailedError("another rank has failed")

    def _take_part(self, kind: str) -> None:
        """In a batch of the others on a sharded model, with nothing to compute."""
        token = torch.tensor([[self.prefix_token_id]], device=self._device)
        with torch.no_grad():
            if kind == "generate_until":
                pad = self.tokenizer.pad_token_id
                self.model.generate(token, max_new_tokens=1, do_sample=False, pad_token_id=pad, synced_gpus=True)
            else:
                self.model(token)


def _nothing() -> tuple[str, list[Arguments]] | None:
    return None
