"""What TRL reads of the logits of a batch, from those of the tokens that say something: an answer's next ones.

TRL's loss and metrics are written for logits of shape (2B, L, V). Of a packed row only those of n tokens are computed,
as many as its answers have, and for a large vocabulary not all at once. ``AnswerLogits`` takes the place of the whole:
it gives each number that TRL 1.9 to 1.14 asks for, and has no other. The log-probs and entropies of ``WholeLogits`` are
computed by the functions that the host has bound, which on a GPU are its Triton kernels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Function = Callable[..., Any]
SHIFT = (Ellipsis, slice(None, -1), slice(None))  # how TRL drops the last place, which has no next token
# Columns of what is kept of a token's logits where they are not kept: head.py makes them.
LOG_PROB, ENTROPY, MEAN, LARGEST = range(4)


class TokenLogits(ABC):
    """Logits of n tokens one after the other, as TRL reads them; or what is kept of them."""

    @abstractmethod
    def take(self, part: slice) -> "TokenLogits":
        """Those of some of the tokens."""

    @abstractmethod
    def detach(self) -> "TokenLogits":
        """The same without gradients."""

    @abstractmethod
    def log_probs(self, function: Function) -> torch.Tensor:
        """Of each token's next one, in nats, shape (n,), by TRL's `selective_log_softmax`."""

    @abstractmethod
    def entropies(self, function: Function) -> torch.Tensor:
        """In nats, shape (n,), by TRL's `entropy_from_logits`."""

    @abstractmethod
    def log_probs_and_entropies(self, function: Function) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, by TRL's `selective_log_softmax_and_entropy`; the entropies without gradients."""

    @abstractmethod
    def mean(self, dim: int) -> torch.Tensor:
        """Of each token's logits, shape (n,)."""

    @abstractmethod
    def argmax(self) -> torch.Tensor:
        """The most likely token after each, shape (n,)."""

    @abstractmethod
    def cross_entropy(self, function: Function) -> torch.Tensor:
        """The mean of the negative log-probs, in nats, by the function of that name."""

    @abstractmethod
    def logsumexp(self, factor: float) -> torch.Tensor:
        """Of each token's logits times a factor, shape (n,)."""


@dataclass(frozen=True)
class WholeLogits(TokenLogits):
    """Logits as they are.

    Attributes:
        logits: of shape (n, V).
        labels: the next tokens, shape (n,).
    """

    logits: torch.Tensor
    labels: torch.Tensor

    def take(self, part: slice) -> "WholeLogits":
        return WholeLogits(self.logits[part], self.labels[part])

    def detach(self) -> "WholeLogits":
        return WholeLogits(self.logits.detach(), self.labels)

    def log_probs(self, function: Function) -> torch.Tensor:
        found: torch.Tensor = function(self.logits[None], self.labels[None])
        return found[0]

    def entropies(self, function: Function) -> torch.Tensor:
        found: torch.Tensor = function(self.logits)
        return found

    def log_probs_and_entropies(self, function: Function) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs, entropies = function(self.logits[None], self.labels[None], entropy_requires_grad=False)
        return log_probs[0], entropies[0]

    def mean(self, dim: int) -> torch.Tensor:
        return self.logits.mean(dim)

    def argmax(self) -> torch.Tensor:
        return self.logits.argmax(-1)

    def cross_entropy(self, function: Function) -> torch.Tensor:
        # A copy, as TRL's padded rows give it: Liger's kernel writes the gradient over what it is given.
        found: torch.Tensor = function(self.logits.clone(), self.labels)
        return found

    def logsumexp(self, factor: float) -> torch.Tensor:
        return torch.logsumexp(factor * self.logits, -1)


@dataclass(frozen=True)
class ReadLogits(TokenLogits):
    """What is kept of logits.

    Attributes:
        columns: of shape (n, 4), float32: `LOG_PROB`, with gradients; `ENTROPY`, `MEAN`, `LARGEST`, without. Of shape
            (n, 1) where nothing else is read.
    """

    columns: torch.Tensor

    @classmethod
    def through(cls, given: torch.Tensor, columns: torch.Tensor) -> "ReadLogits":
        """With the numbers of the columns, and the gradients of what a model gave.

        Args:
            given: log-probs as they came out of the model, shape (n,), maybe rounded.
            columns: without gradients.
        """
        log_probs = columns[:, LOG_PROB] + (given - given.detach()).float()
        return cls(torch.cat([log_probs[:, None], columns[:, LOG_PROB + 1 :]], dim=1))

    def take(self, part: slice) -> "ReadLogits":
        return ReadLogits(self.columns[part])

    def detach(self) -> "ReadLogits":
        return ReadLogits(self.columns.detach())

    def log_probs(self, function: Function) -> torch.Tensor:
        return self.columns[:, LOG_PROB]

    def entropies(self, function: Function) -> torch.Tensor:
        return self.columns[:, ENTROPY].detach()

    def log_probs_and_entropies(self, function: Function) -> tuple[torch.Tensor, torch.Tensor]:
        return self.log_probs(function), self.entropies(function)

    def mean(self, dim: int) -> torch.Tensor:
        return self.columns[:, MEAN].detach()

    def argmax(self) -> torch.Tensor:
        return self.columns[:, LARGEST].detach().long()

    def cross_entropy(self, function: Function) -> torch.Tensor:
        return -self.columns[:, LOG_PROB].mean()

    def logsumexp(self, factor: float) -> torch.Tensor:
        raise AssertionError("dpo_use_weighting reads all logits at once: head.py is told so")


@dataclass(frozen=True)
class AnswerLogits:
    """Takes the place of logits of shape (2B, 1 + W, V), chosen rows first; W: tokens of the longest answer.

    Attributes:
        tokens: the n that say something.
        cells: where each has its place among (2B, W), row by row, shape (n,).
        shape: (2B, W).
        num_chosen: how many of the tokens are of chosen answers.
        factor: that TRL has multiplied them by.
    """

    tokens: TokenLogits
    cells: torch.Tensor
    shape: tuple[int, int]
    num_chosen: int
    factor: float = 1.0

    def log_probs(self, function: Function) -> torch.Tensor:
        """Of shape (2B, W): 0 where no token of an answer is."""
        return self._placed(self.tokens.log_probs(function))

    def entropies(self, function: Function) -> torch.Tensor:
        """Likewise."""
        return self._placed(self.tokens.entropies(function))

    def log_probs_and_entropies(self, function: Function) -> tuple[torch.Tensor, torch.Tensor]:
        """Likewise, both."""
        log_probs, entropies = self.tokens.log_probs_and_entropies(function)
        return self._placed(log_probs), self._placed(entropies)

    def argmax(self, dim: int) -> torch.Tensor:
        """The most likely token, shape (2B, W)."""
        return self._placed(self.tokens.argmax())

    def logsumexp(self) -> torch.Tensor:
        """Over the vocabulary, shape (2B, W)."""
        return self._placed(self.tokens.logsumexp(self.factor))

    def detach(self) -> "AnswerLogits":
        """The same without gradients."""
        return replace(self, tokens=self.tokens.detach())

    def chunk(self, chunks: int, dim: int) -> tuple["AnswerLogits", "AnswerLogits"]:
        """The chosen rows, and the rejected ones."""
        assert (chunks, dim) == (2, 0)
        rows, width = self.shape[0] // 2, self.shape[1]
        first, second = slice(self.num_chosen), slice(self.num_chosen, None)
        chosen = replace(self, tokens=self.tokens.take(first), cells=self.cells[first], shape=(rows, width))
        rejected = self.cells[second] - rows * width
        return chosen, replace(chosen, tokens=self.tokens.take(second), cells=rejected)

    def size(self, dim: int) -> int:
        """Of the rows, or of the longest answer."""
        return self.shape[dim]

    def __getitem__(self, key: Any) -> Any:
        """These without the last place, which they do not have; or the tokens of answers, which they are."""
        return self if isinstance(key, tuple) and key == SHIFT else self.tokens

    def __rmul__(self, factor: float) -> "AnswerLogits":
        return replace(self, factor=factor)

    @classmethod
    def __torch_function__(
        cls, func: Function, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`torch.logsumexp`, by which TRL weighs pairs (`dpo_use_weighting`, arXiv 2406.11827)."""
        return args[0].logsumexp() if func is torch.logsumexp else NotImplemented

    def _placed(self, numbers: torch.Tensor) -> torch.Tensor:
        rows, width = self.shape
        return numbers.new_zeros(rows * width).index_copy(0, self.cells, numbers).view(rows, width)
