"""How much disk a plan will fill: numbers worked out by hand."""

import re

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.disk import GIB, DiskNeed, kept_checkpoints, models_at_once, require_space

# 3 exports of 2 GiB, the final model of 2 GiB, and 4 checkpoints of 6 GiB: 6 + 2 + 24
NEED = DiskNeed(models=3, model_bytes=2 * GIB, checkpoints=4, checkpoint_bytes=6 * GIB)
TABLE = [
    "what              number  GiB each    GiB",
    "----------------  ------  --------  -----",
    "exported models        3      2.00   6.00",
    "final model            1      2.00   2.00",
    "checkpoints            4      6.00  24.00",
    "at least, in all                    32.00",
    "free                                20.50",
]


def test_total_counts_the_final_model_too() -> None:
    assert NEED.total == 32 * 2**30
    assert DiskNeed(0, 7, 0, 100).total == 7
    assert DiskNeed(2, 7, 3, 100).total == 321


def test_estimate_for_reading() -> None:
    assert NEED.table(int(20.5 * GIB)).splitlines() == TABLE


@pytest.mark.parametrize(
    ("num_updates", "every", "limit", "kept"),
    [
        pytest.param(100, 10, None, 10, id="all"),
        pytest.param(100, 10, 0, 10, id="limit-0-keeps-all"),
        pytest.param(100, 10, 3, 3, id="limit"),
        pytest.param(25, 10, 3, 2, id="fewer-than-the-limit"),
        pytest.param(29, 10, None, 2, id="the-rest-is-not-written"),
        pytest.param(9, 10, None, 0, id="too-short"),
        pytest.param(10, 10, None, 1, id="just-one"),
        pytest.param(5, 1, None, 5, id="every-update"),
        pytest.param(5, 0, None, 5, id="interval-0"),
        pytest.param(100, None, 3, 0, id="none-written"),
        pytest.param(0, 10, 3, 0, id="no-updates"),
    ],
)
def test_checkpoints_that_a_step_leaves(num_updates: int, every: int | None, limit: int | None, kept: int) -> None:
    assert kept_checkpoints(num_updates, every, limit) == kept


@pytest.mark.parametrize(
    ("num_steps", "export_steps", "models"),
    [(1, "all", 1), (4, "all", 4), (1, "last", 1), (2, "last", 2), (4, "last", 2)],
)
def test_models_that_stand_at_once(num_steps: int, export_steps: str, models: int) -> None:
    assert models_at_once(num_steps, export_steps) == models


@pytest.mark.parametrize("free", [32 * GIB, 33 * GIB])
def test_run_that_fits_passes(free: int) -> None:
    require_space(NEED, free, "out")


def test_run_that_is_certain_to_fill_the_disk_is_refused_with_the_numbers() -> None:
    expected = "\n".join(
        [
            "output_dir: 'out' has 20.50 GiB free, and this run writes at least 32.00 GiB:",
            *TABLE,
            "Free some space, keep fewer checkpoints (save_total_limit, save_only_model), set sdpo.export_steps: last, "
            "or set an output_dir on a larger disk.",
        ]
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        require_space(NEED, int(20.5 * GIB), "out")


def test_one_byte_too_few_is_refused() -> None:
    with pytest.raises(OutputError, match=r"has 32\.00 GiB free, and this run writes at least 32\.00 GiB"):
        require_space(NEED, 32 * GIB - 1, "out")
