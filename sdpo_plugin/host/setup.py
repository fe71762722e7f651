"""Config, data and run directory, as a run is started with them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.also_needed import complete, require_what_else_is_needed
from sdpo_plugin.host.data.columns import concatenate, row_facts
from sdpo_plugin.host.data.loading import LoadedSource, load_made_rows, load_sources
from sdpo_plugin.host.data.planning import preview
from sdpo_plugin.host.data.tokenized import TokenizedSource, tokenize
from sdpo_plugin.host.data_checks import check_at_start, check_made_rows
from sdpo_plugin.host.engines.memory import pass_over_imports
from sdpo_plugin.host.forward.fitting import require_fitting_rows
from sdpo_plugin.host.session import Session
from sdpo_plugin.plan import Plan
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why


def load(
    cfg: DictDefault, block: SDPOConfig, made: Collection[str] = (), *, begins: bool = False
) -> tuple[list[LoadedSource], Plan]:
    """Load every source; with the plan as far as it is known by then.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        made: names of the steps whose rows a hook has made already.
        begins: a run begins, which reads the data of its benchmarks too. One that is resumed does without them.

    Raises:
        ConfigError: an external reference has another tokenizer than the policy; a step would have no rows; benchmarks
            that do not exist, or cannot be read.
        DataError: a source cannot be read, is not preference data, or has no row left.
    """
    pass_over_imports()  # of the host: all but the trainer's
    require_what_else_is_needed(cfg, block, begins=begins)
    sources = load_sources(cfg, block, made)
    return sources, preview(cfg, block, sources)  # on every rank: a pool that is too small ends them all


def for_host(sources: Sequence[LoadedSource]) -> TrainDatasetMeta:
    """The data that the host builds its trainer with: those of the first step."""
    first = sources[0]
    return TrainDatasetMeta(first.train, concatenate(list(first.heldout.values())), first.total_num_steps)


@dataclass(frozen=True)
class RunSetup:
    """Everything that a run is started with, beside its trainer.

    Attributes:
        cfg: the host's config.
        block: the `sdpo:` block.
        session: where the run writes, and where it begins.
        sources: data of each entry of `datasets:`, or of each of `sdpo.steps`.
    """

    cfg: DictDefault
    block: SDPOConfig
    session: Session
    sources: Sequence[TokenizedSource]

    @classmethod
    def of(
        cls,
        trainer: "DPOTrainer",
        cfg: DictDefault,
        block: SDPOConfig,
        session: Session,
        sources: Sequence[LoadedSource],
    ) -> "RunSetup":
        """Complete M_0, tokenize all data, and refuse what the model cannot take, before the first step trains.

        Raises:
            ConfigError: an adapter to start from that is not the config's; benchmarks in a chat template that the
                tokenizer does not have.
            DataError: no row of a set is short enough; a row has token ids or positions that the model does not have;
                pairs that make training wrong.
        """
        complete(trainer, cfg, block)
        tokenized = tokenize(trainer, sources)
        require_fitting_rows(trainer, tokenized, block)
        check_at_start(cfg, block.check_data, session.run, list(zip(sources, tokenized, strict=True)), session.made)
        return cls(cfg, block, session, tokenized)

    def with_made_rows(self, trainer: "DPOTrainer", index: int) -> tuple["RunSetup", LoadedSource]:
        """The same, with the rows that `sdpo.before_step` has made for step ``index`` (from 1); and these as texts.

        Raises:
            DataError: as in ``of``; or they cannot be read, or are no preference data.
        """
        awaited = self.sources[index - 1]
        loaded = load_made_rows(awaited.name, awaited.cfg)
        made = tokenize(trainer, [loaded])
        require_fitting_rows(trainer, made, self.block)
        check_made_rows(self.cfg, self.block.check_data, self.run, loaded, made[0])
        source = replace(made[0], heldout=awaited.heldout, settings=awaited.settings)
        sources = [source if number == index else other for number, other in enumerate(self.sources, 1)]
        return replace(self, sources=sources), loaded

    def ledger(self, plan: Plan, pool: Mapping[Path, LogProbTable]) -> Ledger:
        """The ledger of the run that is resumed, or that of a new one, with the tables that its plan was made with."""
        tables = {self.run.key(path): table for path, table in pool.items()}
        return self.session.start.ledger or Ledger.begin(plan, self.session.identity).with_tables(tables)

    @property
    def rows(self) -> list[tuple[Dataset, RowFacts]]:
        """The rows of all sources, and those that they hold out, with what is known of them: as the run began with
        them, also when it is resumed, and so without those that a hook makes."""
        made = {number for number, step in enumerate(self.block.steps or []) if step.from_hook is not None}
        heldout = {name: rows for source in self.sources for name, rows in source.heldout.items()}
        train = [(source.train, source.facts) for number, source in enumerate(self.sources) if number not in made]
        return train + [(rows, row_facts(rows)) for rows in heldout.values()]

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return self.session.run
