"""The toy task: put a handful of words into alphabetical order.

The base model learns from a *sloppy sorter*. At every place of its answer the sorter
writes the first word left in the alphabet, or slips and writes the second. The prompt
says how it works: "carefully" it slips less often than not, "quickly" more often. So
the base model can sort, but does not prefer sorted answers overall.

Preference rows want the sorted answer whatever the prompt says. The rejected answer is
one the sorter could have given: with many slips in the easy set, with a single slip in
a longer list in the hard set.
"""

import random
from dataclasses import dataclass
from typing import TypedDict

ANIMALS = (
    "ant bear cat dog eel fox goat hare ibis jay koala lynx mole newt owl pig quail rat seal toad urial vole wolf yak"
)
WORDS = ANIMALS.split()
SLIP_RATE = {"carefully": 0.35, "quickly": 0.70, "lazily": 0.85}


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


class PreferenceRow(TypedDict):
    """One row as Axolotl's `chat_template.default` reads it."""

    messages: list[Message]
    chosen: Message
    rejected: Message


@dataclass(frozen=True)
class Difficulty:
    """The settings that make a preference set easy or hard."""

    lengths: tuple[int, ...]  # words in a prompt
    slips: tuple[int, ...]  # slips in a rejected answer
    manners: tuple[str, ...]  # what a prompt may say, each equally often


EASY = Difficulty(lengths=(4, 5), slips=(2, 3), manners=("carefully", "quickly"))
HARD = Difficulty(lengths=(6,), slips=(1,), manners=("quickly", "lazily"))
SFT_LENGTHS = (4, 5, 6)


def prompt_text(manner: str, words: list[str]) -> str:
    """Return the user's message."""
    return f"sort {manner} : " + " ".join(words)


def sort_with_slips(words: list[str], slips: set[int]) -> list[str]:
    """Return `words` in order, but for the second word left at each place in `slips`."""
    left = sorted(words)
    return [left.pop(1 if place in slips and len(left) > 1 else 0) for place in range(len(words))]


class TaskGenerator:
    """Draws SFT samples and preference rows from one seeded random stream.

    No set of words is used for more than one preference row, and none of a preference
    row is used in SFT: what a held-out row asks was never seen in any order.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._taken: set[frozenset[str]] = set()

    def _draw_words(self, lengths: tuple[int, ...]) -> list[str]:
        while True:
            words = self._rng.sample(WORDS, self._rng.choice(lengths))
            if frozenset(words) not in self._taken:
                return words

    def sft_sample(self) -> tuple[str, str]:
        """Return a user message and the answer that the sloppy sorter gave to it."""
        words = self._draw_words(SFT_LENGTHS)
        manner = self._rng.choice(list(SLIP_RATE))
        slips = {p for p in range(len(words)) if self._rng.random() < SLIP_RATE[manner]}
        return prompt_text(manner, words), " ".join(sort_with_slips(words, slips))

    def preference_row(self, difficulty: Difficulty) -> PreferenceRow:
        """Return one row: the sorted answer against one with slips."""
        words = self._draw_words(difficulty.lengths)
        self._taken.add(frozenset(words))
        manner = self._rng.choice(difficulty.manners)
        places = range(len(words) - 1)  # at the last place there is nothing to choose
        slips = set(self._rng.sample(places, self._rng.choice(difficulty.slips)))
        prompt = prompt_text(manner, words)
        return {
            "messages": [{"role": "user", "content": prompt}],
            "chosen": {"role": "assistant", "content": " ".join(sorted(words))},
            "rejected": {
                "role": "assistant",
                "content": " ".join(sort_with_slips(words, slips)),
            },
        }

    def preference_rows(self, difficulty: Difficulty, count: int) -> list[PreferenceRow]:
        """Return `count` rows of one difficulty."""
        return [self.preference_row(difficulty) for _ in range(count)]
