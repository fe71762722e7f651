"""The pairs of every source are checked before hours are spent on them: in `axolotl preprocess`, and before step 1."""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.check_words import check_lines, check_table, refusals
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.answers import frames, spoilt
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.data.pair_tokens import facts_of_texts, facts_of_tokens, marks_of
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.engines.tokenizer import tokenizer_of
from sdpo_plugin.pair_checks import SourceChecks, SourcePairs, check_pairs
from sdpo_plugin.run_dir.data_checks import DataChecks, add_checks, save_checks
from sdpo_plugin.run_dir.paths import RunDir

LOG = logging.getLogger("axolotl.sdpo_plugin")
SHOWN_LETTERS = 40
CheckData = Literal["error", "warn", False]
Sources = Sequence[tuple[LoadedSource, TokenizedSource | None]]


def check_before_training(cfg: DictDefault, check_data: CheckData, loaded: Sequence[LoadedSource]) -> None:
    """`axolotl preprocess`: print the table of all sources, and what was found in them.

    Raises:
        DataError: pairs that make training wrong, with `check_data: error`.
    """

    tokenizer = tokenizer_of(cfg)

    def check() -> None:
        checker = _Checker.of(cfg, tokenizer, [(source, None) for source in loaded])
        LOG.info("checks of the data, pairs of each source\n%s", check_table(checker.found))
        checker.tell(check_data)

    if check_data:
        on_rank_0(check)


def check_at_start(
    cfg: DictDefault, check_data: CheckData, run: RunDir, sources: Sources, made: Collection[str] = ()
) -> None:
    """When all rows are tokenized: say what was found in them, and keep the counts with the run.

    Args:
        cfg: the host's config.
        check_data: `sdpo.check_data`.
        run: the run directory.
        sources: each as texts and as tokens.
        made: names of those whose rows a hook has made before the run was resumed.

    Raises:
        DataError: pairs that make training wrong, with `check_data: error`.
        OutputError: the counts cannot be written.
    """

    tokenizer = tokenizer_of(cfg)

    def check() -> None:
        checker = _Checker.of(cfg, tokenizer, sources, made)
        checker.tell(check_data)
        save_checks(run, DataChecks(str(check_data), tuple(checker.found)))

    if check_data:
        on_rank_0(check)


def check_made_rows(
    cfg: DictDefault, check_data: CheckData, run: RunDir, loaded: LoadedSource, tokenized: TokenizedSource
) -> None:
    """The same of the rows that `sdpo.before_step` has just made.

    Raises:
        DataError, OutputError: as in ``check_at_start``.
    """

    tokenizer = tokenizer_of(cfg)

    def check() -> None:
        checker = _Checker.of(cfg, tokenizer, [(loaded, tokenized)])
        checker.tell(check_data)
        add_checks(run, checker.found[0])

    if check_data:
        on_rank_0(check)


@dataclass(frozen=True)
class _Checker:
    """What was found, with what is needed to name a row.

    Attributes:
        found: in each source that has rows.
        rows: of these sources by name, as texts.
        tokenizer: of the run.
    """

    found: Sequence[SourceChecks]
    rows: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(
        cls, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, sources: Sources, made: Collection[str] = ()
    ) -> "_Checker":
        """Check the sources that have rows."""
        began = time.monotonic()
        there = [(loaded, tokens) for loaded, tokens in sources if not loaded.is_awaited]
        rows = {loaded.name: _as_trained(loaded.train, tokens) for loaded, tokens in there}
        pairs = [_pairs(cfg, loaded, tokens, rows[loaded.name], tokenizer) for loaded, tokens in there]
        found = check_pairs([replace(source, is_made=source.name in made) for source in pairs])
        LOG.debug("the pairs of %d sources were checked in %.1f s", len(pairs), time.monotonic() - began)
        return cls(found, rows, tokenizer)

    def tell(self, check_data: CheckData) -> None:
        """Say what was found, and refuse what makes training wrong."""
        lines, wrong = check_lines(self.found, self._name), refusals(self.found, self._name)
        for line in lines:
            LOG.warning("checks of the data: %s", line)
        if not lines:
            LOG.info("checks of the data: nothing was found")
        if wrong and check_data == "error":
            raise DataError("\n".join(wrong))

    def _name(self, source: str, row: int) -> str:
        """A row by its number, the first words of its prompt, without special tokens, and those of its answers."""
        texts = self.rows[source][row]
        prompt = texts.get("prompt")
        if isinstance(prompt, str):
            prompt = self.tokenizer.decode(self.tokenizer(prompt)["input_ids"], skip_special_tokens=True)
        shown = {"prompt": prompt, "chosen": texts.get("chosen"), "rejected": texts.get("rejected")}
        return f"{row} ({', '.join(f'{name} {_brief(str(text))}' for name, text in shown.items())})"


def _pairs(
    cfg: DictDefault,
    loaded: LoadedSource,
    tokens: TokenizedSource | None,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> SourcePairs:
    around = frames(cfg, loaded.cfg.datasets, tokenizer)
    marks = marks_of(tokenizer, around)
    return SourcePairs(
        name=loaded.name,
        num_rows=len(rows),
        num_dropped=(loaded if tokens is None else tokens).num_dropped,
        sequence_len=loaded.cfg.sequence_len,
        facts=facts_of_texts(rows, tokenizer, marks) if tokens is None else facts_of_tokens(tokens.train, marks),
        lost=spoilt(rows, around),
        other_prompts=loaded.other_prompts,
    )


def _as_trained(rows: Dataset, tokens: TokenizedSource | None) -> Dataset:
    """The texts of the rows that are trained on: TRL drops those whose prompt alone is too long."""
    if tokens is None or len(tokens.train) == len(rows):
        return rows
    kept = iter(tokens.train["prompt"])
    wanted, numbers = next(kept, None), []
    for number, prompt in enumerate(rows["prompt"]):
        if prompt == wanted:
            numbers.append(number)
            wanted = next(kept, None)
    return rows.select(numbers)


def _brief(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= SHOWN_LETTERS else f"{words[: SHOWN_LETTERS - 1]}…")
