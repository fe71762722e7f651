"""What is wrong with the pairs of a source before anything is trained on them: counts, rows, and what is refused.

Pure functions on the facts of tokenized pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdpo_plugin import estimates
from sdpo_plugin.pair_facts import Bools, PairFacts, concatenate
from sdpo_plugin.rows import pair_keys
from sdpo_plugin.schema import STRICT, Count

EXAMPLES = 3
MOST = 0.5  # a defect in more than this share of the pairs is of the source as a whole
PREDICTS = 0.8  # length predicts the label where the interval of that accuracy lies above it


@dataclass(frozen=True)
class Kind:
    """One thing that pairs can have.

    Attributes:
        heading: of its line in tables.
        text: what is said of pairs that have it, behind "12 of 40 pairs".
        refused_above: share of the pairs above which it makes training wrong; None: it does at no share.
        remedy: what to do then.
    """

    heading: str
    text: str
    refused_above: float | None = None
    remedy: str = ""


KINDS: Mapping[str, Kind] = {
    "lost": Kind(
        "lost content",
        "have an answer that lost its content on the way through the chat template",
        0.0,
        "type: chat_template.* looks for the answer in the text that the template has written, and does not find one "
        "that the template trims, or finds a short or an empty one too early. Strip the white space around the answers "
        "in the data, remove rows with an empty answer, or set a type that joins texts, such as chatml.* or llama3.*.",
    ),
    "identical": Kind(
        "chosen the same as rejected",
        "have the same tokens as chosen and as rejected answer",
        MOST,
        "Such a pair has no gradient. Check field_chosen and field_rejected of the entry, or remove these rows.",
    ),
    "empty": Kind(
        "empty answer",
        "have an answer without content",
        MOST,
        "Check field_chosen and field_rejected of the entry, or remove these rows.",
    ),
    "other_prompts": Kind(
        "answers to different prompts",
        "have a rejected answer to another prompt than the chosen one, which is trained on behind the prompt of the "
        "chosen one",
        MOST,
        "Pair answers to the same messages, or remove these rows.",
    ),
    "doubled_bos": Kind(
        "BOS twice",
        "have a prompt that begins with the BOS token twice, by its own text or by the chat template",
        MOST,
        "Remove it from the texts, or from the chat template.",
    ),
    "no_bos": Kind("no BOS", "have a prompt without the BOS token that the tokenizer or the chat template begins with"),
    "no_eos": Kind("no EOS", "have an answer that does not end with the EOS token"),
    "truncated": Kind("truncated", "are longer than sequence_len, and have an answer that is cut off"),
    "duplicates": Kind("duplicate", "are the same as a pair before them"),
    "contradictory": Kind(
        "contradictory",
        "prefer what another pair rejects: the same prompt and answers, the other way round",
        MOST,
        "Such pairs undo each other. Keep the one that is right, and remove the other.",
    ),
}


@dataclass(frozen=True)
class Found:
    """The pairs of a source that have one of ``KINDS``.

    Attributes:
        num_rows: of them; None: not looked at.
        rows: the first three, counted from 0.
        of: rows that were looked at, where those are the rows of the files before any was dropped or held out; None:
            the pairs of the source.
    """

    __pydantic_config__ = STRICT

    num_rows: Count | None = None
    rows: tuple[Count, ...] = ()
    of: Count | None = None


NOT_LOOKED_AT = Found()


@dataclass(frozen=True)
class LongerIsChosen:
    """The share of pairs whose longer answer is the chosen one, with its 95 % interval (Wilson).

    Attributes:
        num_rows: pairs whose answers differ in length.
    """

    __pydantic_config__ = STRICT

    num_rows: Count
    value: float
    low: float
    high: float

    @property
    def predicts(self) -> bool:
        """Whether length alone predicts the label."""
        return self.low > PREDICTS or self.high < 1 - PREDICTS


@dataclass(frozen=True)
class SourceChecks:
    """What was found in one source.

    Attributes:
        source: name of the step, or of the entry's step.
        num_rows: its pairs.
        num_dropped: rows that the host has dropped as too long; None: not known.
        found: for each of ``KINDS``.
        longer_is_chosen: None where no two answers differ in length, or tokens were not looked at.
    """

    __pydantic_config__ = STRICT

    source: str
    num_rows: Count
    num_dropped: Count | None
    found: dict[str, Found] = field(default_factory=dict)
    longer_is_chosen: LongerIsChosen | None = None

    def refused(self) -> list[str]:
        """The kinds that make training on this source wrong."""
        return [kind for kind, found in self.found.items() if self._is_refused(KINDS[kind], found)]

    def _is_refused(self, kind: Kind, found: Found) -> bool:
        num_rows = found.num_rows or 0
        return kind.refused_above is not None and num_rows > kind.refused_above * (found.of or self.num_rows)


@dataclass(frozen=True)
class SourcePairs:
    """The pairs of one source, as they are checked.

    Attributes:
        name, num_rows, num_dropped: as in ``SourceChecks``.
        sequence_len: tokens of a pair that are trained on in its step.
        facts: of its pairs; None: they are no tokens yet.
        lost: which of them have an answer that lost its content; None where no template looks for answers.
        other_prompts: the pairs whose answers are to different prompts; not known by default.
        is_made: by `sdpo.before_step`, which may well judge pairs of earlier steps again: it is looked at by itself.
    """

    name: str
    num_rows: int
    num_dropped: int | None
    sequence_len: int
    facts: PairFacts | None
    lost: Bools | None
    other_prompts: Found = NOT_LOOKED_AT
    is_made: bool = False


def check_pairs(sources: Sequence[SourcePairs]) -> list[SourceChecks]:
    """Check the pairs of all sources; duplicates and contradictions are sought over all of them that no hook has made.

    Args:
        sources: in the order of the steps.
    """
    together = repeats([source.facts for source in sources if source.facts is not None and not source.is_made])
    checks, first = [], 0
    for source in sources:
        flags: dict[str, Bools] = {}
        if source.facts is not None:
            if source.is_made:
                repeated, own = repeats([source.facts]), slice(None)
            else:
                repeated, own = together, slice(first, first + len(source.facts))
                first = own.stop
            flags = _flags(source.facts, source.sequence_len) | {kind: flag[own] for kind, flag in repeated.items()}
        checks.append(_checks(source, flags))
    return checks


def repeats(parts: Sequence[PairFacts]) -> dict[str, Bools]:
    """Which pairs of all sources, one after the other, are the same as one before; and which contradict another."""
    if not parts:
        return {}
    facts = concatenate(parts)
    keys = pair_keys(facts.prompts, facts.chosen, facts.rejected)
    mirrored = pair_keys(facts.prompts, facts.rejected, facts.chosen)
    duplicates = np.ones(len(keys), dtype=bool)
    duplicates[np.unique(keys, return_index=True)[1]] = False
    return {"duplicates": duplicates, "contradictory": np.isin(keys, mirrored) & (facts.chosen != facts.rejected)}


def longer_is_chosen(facts: PairFacts) -> LongerIsChosen | None:
    """How well the length of the answers alone predicts which is chosen; None where no two differ in length."""
    difference = facts.chosen_tokens - facts.rejected_tokens
    num_rows = int((difference != 0).sum())
    if not num_rows:
        return None
    share = estimates.wilson(int((difference > 0).sum()), num_rows)
    return LongerIsChosen(num_rows, share.value, share.low, share.high)


def _flags(facts: PairFacts, sequence_len: int) -> dict[str, Bools]:
    longer = np.maximum(facts.chosen_tokens, facts.rejected_tokens)
    return {
        "identical": facts.chosen == facts.rejected,
        "empty": facts.empty,
        "doubled_bos": facts.doubled_bos,
        "no_bos": facts.no_bos,
        "no_eos": facts.no_eos,
        "truncated": facts.prompt_tokens + longer > sequence_len,
    }


def _checks(source: SourcePairs, flags: Mapping[str, Bools]) -> SourceChecks:
    known = dict(flags) if source.lost is None else {**flags, "lost": source.lost}
    found = {kind: _found(known[kind]) if kind in known else NOT_LOOKED_AT for kind in KINDS}
    return SourceChecks(
        source=source.name,
        num_rows=source.num_rows,
        num_dropped=source.num_dropped,
        found=found | {"other_prompts": source.other_prompts},
        longer_is_chosen=None if source.facts is None else longer_is_chosen(source.facts),
    )


def _found(flag: Bools) -> Found:
    rows = np.flatnonzero(flag)
    return Found(len(rows), tuple(map(int, rows[:EXAMPLES])))
