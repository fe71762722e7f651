"""The rows of a step that M_{t-1} picks: what is left of the pool is ranked, and the easiest of it make D_t."""

import time

from transformers import PreTrainedModel

from sdpo_plugin import partition, tables
from sdpo_plugin.host.data.cutting import eases
from sdpo_plugin.host.data.layout import Layout, lay_out, step_of
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.host.forward.passes import Passes
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.plan import StepPlan, model_name
from sdpo_plugin.step_host import PickedRows


def pick_rows(
    setup: RunSetup, layout: Layout, step: StepPlan, passes: Passes, stand_in: PreTrainedModel | None
) -> tuple[Layout, PickedRows]:
    """Rank what is left of the pool by M_{t-1}, and give the step the easiest of it.

    Args:
        setup: of the run.
        layout: of its steps, in which this one has no rows.
        step: t.
        passes: fills tables of log-probs.
        stand_in: a model in place of the policy.

    Returns:
        The layout with these rows, and what is kept of them. The table of the pass has the reference of the step.

    Raises:
        ReferenceTableError: a log-prob is not finite.
        Stopped: the run was asked to stop.
    """
    start, args, cut, sources = time.perf_counter(), setup.block.partition, layout.cut, setup.sources
    assert args is not None
    assert cut is not None
    pool = tables.concatenate(layout.source_tables)
    left = cut.left(len(pool))
    data = step_of(step.index, left, sources)
    table = passes.left_table(step, data, model_name(step.index - 1), stand_in)
    # Every rank has the same table; that the first one decides keeps them together whatever their libraries sort like.
    places = on_rank_0(lambda: partition.easiest(eases(args, table), step.num_rows))
    rows = left[places]
    picked = (*cut.parts[1:], rows)
    laid_out = lay_out(setup.cfg, setup.block, sources, layout.source_tables, picked)
    digest = laid_out.data(step).facts.digest()
    of_step = [table.select(places, digest), pool.select(rows, digest)]
    return laid_out, PickedRows(laid_out.plan, rows, of_step, time.perf_counter() - start)
