"""A script that cuts a pool of rows by the log-probs of its texts; it knows nothing of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.data import Config, read_rows, write_rows
from integration_tests.harness.expected_log_probs import expect_texts, texts

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host


def gammas(host: Host, pool: Config, model: Path) -> Any:
    """γ of each line of the pool under a model."""
    (table,) = expect_texts(host, texts(pool), model)
    return table[:, 0] - table[:, 1]


def cut(pool: Config, lines: Any, path: Path) -> Config:
    """An entry that has these lines of the pool, in their order there."""
    rows = read_rows(Path(pool["path"]))
    write_rows(path, [rows[line] for line in sorted(lines)])
    return {**pool, "path": str(path)}
