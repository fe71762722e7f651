"""Tables that are made before step 1: of the pool, to lay out the steps; of every D_t, by a reference that stays."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sdpo_plugin.host.data.layout import Layout
from sdpo_plugin.host.data.planning import needs_base_tables
from sdpo_plugin.host.engines.external import load_reference
from sdpo_plugin.host.engines.memory import free_memory
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.forward.packed import pack_second_model
from sdpo_plugin.host.forward.passes import Passes
from sdpo_plugin.host.forward.positions import check_positions
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.plan import M_0, StepPlan
from sdpo_plugin.run_dir.picked_rows import read_picked
from sdpo_plugin.run_dir.table_files import read_table, save_table
from sdpo_plugin.step_host import EarlyTables
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from sdpo_plugin.host.trainer import StepwiseDPOTrainer


def pool_tables(setup: RunSetup, passes: Passes) -> dict[Path, LogProbTable]:
    """Log-probs of each source under M_0 where they lay out the steps, on disk before there is a plan.

    Raises:
        ReferenceTableError: a log-prob is not finite; a table of the run that is resumed is missing or damaged.
    """
    if not needs_base_tables(setup.block):
        return {}
    run, ledger = setup.run, setup.session.start.ledger
    paths = {run.pool(number): source for number, source in enumerate(setup.sources, 1)}
    if ledger is not None:
        return {path: on_rank_0(partial(read_table, run, ledger, path)) for path in paths}
    tables = {}
    for number, (path, source) in enumerate(paths.items(), 1):
        tables[path] = passes.source_table(source, M_0, f"source {number}")
        on_rank_0(partial(save_table, tables[path], path))
    return tables


def picked_rows(setup: RunSetup) -> list[NDArray[np.int64]]:
    """The rows that models of the run that is resumed have picked, step by step; of a new run none.

    Raises:
        OutputError: a file is missing, or has been changed.
    """
    return on_rank_0(partial(read_picked, setup.run, setup.session.start.ledger))


def early_tables(
    trainer: "StepwiseDPOTrainer",
    setup: RunSetup,
    layout: Layout,
    passes: Passes,
    steps: Sequence[StepPlan],
    heldout: Sequence[str],
    base: PreTrainedModel | None,
) -> EarlyTables:
    """``StepHost.early_tables``. The log-probs that ordered the data are not computed again.

    Args:
        trainer: holds the policy.
        setup: config, data and run directory.
        layout: of the run.
        passes: fills tables of log-probs.
        steps, heldout: as in ``StepHost.early_tables``.
        base: M_0, where that is not the policy.

    Raises:
        ConfigError: the external reference cannot be loaded.
        DataError: it has no positions for a row.
        ReferenceTableError: a log-prob is not finite.
    """
    reference = setup.block.reference
    tables = list(zip(steps, layout.base_tables, strict=False))
    if reference == "base" and not tables:
        tables = [(step, passes.step_table(step, layout.data(step), M_0, base)) for step in steps]
    if reference in ("previous", "base"):
        return EarlyTables(tables)
    name = steps[0].reference
    model = load_reference(setup.cfg, reference, trainer)
    check_positions(trainer, setup.sources, setup.block, model, f"sdpo.reference: {reference!r}")
    pack_second_model(trainer, model, setup.rows, setup.cfg, setup.block.packed)
    tables += [(step, passes.step_table(step, layout.data(step), name, model)) for step in steps]
    own = passes.heldout_tables(layout, heldout, name, model)
    del model
    free_memory()
    return EarlyTables(tables, {name: own})
