"""A batch of pairs as one row without padding: [prompt | chosen | rejected] of each pair, end to end, each prompt once.

TRL's loss sees the batch as a small one: two rows a pair, chosen first, of the last prompt token and the answer. The
log-probs of an answer are all in there, so every loss, metric and weighting of TRL's runs on it unchanged. Logits are
computed for those n tokens alone whose next one is of an answer: `answer_logits.py` shows them to TRL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from sdpo_plugin.host.data.columns import REFERENCE

PACKED = "packed_layout"  # key of a batch; what carries it is packed


@dataclass(frozen=True)
class Pair:
    """Tokens of one pair, and where it begins in the packed row."""

    start: int
    prompt: int
    chosen: int
    rejected: int

    def __len__(self) -> int:
        return self.prompt + self.chosen + self.rejected


@dataclass(frozen=True)
class PackedLayout:
    """The pairs of a packed row of N tokens, in order.

    Attributes:
        pairs: B of them.
    """

    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, int, int]]) -> "PackedLayout":
        """The layout of pairs with these numbers of tokens: prompt, chosen, rejected."""
        starts = accumulate(map(sum, lengths), initial=0)
        return cls(tuple(Pair(start, *parts) for start, parts in zip(starts, lengths, strict=False)))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its answers."""
        return max(pair.prompt + max(pair.chosen, pair.rejected) for pair in self.pairs)

    def positions(self) -> torch.Tensor:
        """Position of each token in its own text, shape (1, N): a rejected answer continues its prompt."""
        parts = [
            torch.cat([torch.arange(p.prompt + p.chosen), torch.arange(p.prompt, p.prompt + p.rejected)])
            for p in self.pairs
        ]
        return torch.cat(parts)[None]

    def texts(self) -> torch.Tensor:
        """Place of each token of TRL's rows, shape (tokens,): that of a prompt's twice."""
        parts = []
        for pair in self.pairs:
            places = torch.arange(pair.start, pair.start + len(pair))
            first, second = places.split([pair.prompt + pair.chosen, pair.rejected])
            parts += [first, places[: pair.prompt], second]
        return torch.cat(parts)

    def places(self) -> torch.Tensor:
        """Place in the packed row of each token whose next one is of an answer, shape (n,): all chosen ones, then all
        rejected ones. The first of an answer is the last one of its prompt."""
        rows = [torch.zeros(0, dtype=torch.long)]
        for side in ("chosen", "rejected"):
            for pair in self.pairs:
                before = pair.start + pair.prompt - 1
                row = torch.arange(getattr(pair, side)) + before + (pair.chosen if side == "rejected" else 0)
                row[:1] = before
                rows.append(row)
        return torch.cat(rows)

    def labels(self) -> torch.Tensor:
        """Place of the next token of each of them, shape (n,)."""
        firsts = [pair.start + pair.prompt for pair in self.pairs]
        spans = [(first, pair.chosen) for first, pair in zip(firsts, self.pairs, strict=True)]
        spans += [(first + pair.chosen, pair.rejected) for first, pair in zip(firsts, self.pairs, strict=True)]
        return torch.cat([torch.arange(first, first + length) for first, length in spans])

    def answers(self) -> torch.Tensor:
        """Where TRL sees a token of an answer, as 0 and 1, shape (2B, 1 + longest answer): chosen rows, then rejected.

        Column 0 is the last prompt token.
        """
        lengths = torch.tensor([getattr(pair, side) for side in ("chosen", "rejected") for pair in self.pairs])
        column = torch.arange(1 + int(lengths.max()))
        return ((column >= 1) & (column <= lengths[:, None])).long()


class PackingCollator:
    """Makes packed batches of tokenized rows.

    Attributes:
        max_length: tokens of a prompt with one of its answers, beyond which an answer is cut; None: no limit.
    """

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch.

        Args:
            rows: B rows with ``prompt_ids``, ``chosen_ids``, ``rejected_ids``; reference log-probs where known.

        Returns:
            ``input_ids`` and ``completion_mask`` as TRL sees them, shape (2B, 1 + longest answer); ``attention_mask``,
            whose sum is the number of tokens of the padded batch without its padding; ``packed_ids`` and
            ``packed_positions``, shape (1, N); ``packed_places`` and ``packed_labels``, of the n tokens that logits are
            needed for and of their next ones, and ``packed_cells``, where TRL sees those; the layout; the reference
            log-probs, shape (B,).
        """
        parts = [self._parts(row) for row in rows]
        layout = PackedLayout.of([(len(prompt), len(chosen), len(rejected)) for prompt, chosen, rejected in parts])
        ids = torch.tensor([token for pair in parts for part in pair for token in part])
        labels, answers = ids[layout.labels()], layout.answers()
        seen, tokens = torch.zeros_like(answers), answers.clone()
        seen[answers == 1] = labels
        tokens[:, 0] = torch.tensor([pair.prompt for pair in layout.pairs]).repeat(2)
        batch = {
            "input_ids": seen,
            "attention_mask": tokens,
            "completion_mask": answers,
            "packed_ids": ids[None],
            "packed_positions": layout.positions(),
            "packed_places": layout.places(),
            "packed_labels": labels,
            "packed_cells": answers[:, 1:].flatten().nonzero()[:, 0],
            PACKED: layout,
        }
        for key in REFERENCE:
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows])
        return batch

    def _parts(self, row: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
        prompt = list(row["prompt_ids"])
        room = None if self.max_length is None else self.max_length - len(prompt)
        assert room is None or room > 0, "a prompt without room for an answer is dropped when rows are tokenized"
        return prompt, list(row["chosen_ids"][:room]), list(row["rejected_ids"][:room])


def longest_row(inputs: Mapping[str, Any]) -> int:
    """Tokens of the longest text of a batch, packed or padded."""
    layout = inputs.get(PACKED)
    return int(inputs["input_ids"].shape[1]) if layout is None else int(layout.longest)
