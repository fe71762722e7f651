"""Where the rows come from: `datasets:`, `sdpo.steps` or a pool, and not two of them; and what shape they have."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugin.errors import ConfigError


def check_data_sources(cfg: Mapping[str, Any], has_steps: bool, cuts_rows: bool = False) -> None:
    """The steps come from `datasets:` (two entries or more) or from `sdpo.steps`, and not from both.

    Args:
        cfg: the host's config.
        has_steps: `sdpo.steps` is set.
        cuts_rows: a partition makes steps of rows, so that one entry can be several steps.

    Raises:
        ConfigError: both, neither, a pool of one entry, or what is no list of entries.
    """
    for key in ("datasets", "test_datasets"):
        _require_entries(key, cfg.get(key))
    datasets = cfg.get("datasets") or []
    if has_steps and datasets:
        raise ConfigError(
            f"both datasets: ({len(datasets)} entries) and sdpo.steps are set; keep sdpo.steps, "
            "or remove it and let each entry of datasets: be one step."
        )
    if not has_steps and not datasets:
        raise ConfigError(
            "rl: sdpo has no data: set datasets: with one entry per step, or sdpo.steps with datasets of its own."
        )
    if not has_steps and not cuts_rows and len(datasets) == 1:
        path = datasets[0].get("path")
        raise ConfigError(
            f"rl: sdpo with one entry in datasets: (path: {path!r}) would be a single step; add an entry per step, "
            "or cut it by rows with sdpo.partition (e.g. strategy: easy_to_hard, unit: row, num_steps: 2), or, to mean "
            "one step, write it under sdpo.steps; for plain DPO set rl: dpo."
        )


def check_pool(cfg: Mapping[str, Any], weights: Sequence[float] | None, column: str | None) -> None:
    """`sdpo.partition.weights` has one number for each entry of `datasets:`; `column` reaches the rows.

    Raises:
        ConfigError: it has more or fewer; or the host fetches rows that were prepared without the column.
    """
    datasets = cfg["datasets"]
    if column is not None and cfg.get("push_dataset_to_hub"):
        raise ConfigError(
            f"sdpo.partition.column: {column!r} conflicts with push_dataset_to_hub: {cfg['push_dataset_to_hub']!r}: "
            "the host fetches the rows that lie there, which are prepared without the column; remove "
            "push_dataset_to_hub."
        )
    if weights is not None and len(weights) != len(datasets):
        raise ConfigError(
            f"sdpo.partition.weights: {list(weights)} has {len(weights)} numbers and datasets: {len(datasets)} "
            "entries; give each entry one weight, in order."
        )


def _require_entries(key: str, entries: Any) -> None:
    """The host takes the shape of data sets on trust, and would end with a traceback of its own."""
    if entries is None:
        return
    if not isinstance(entries, list):
        raise ConfigError(f"{key}: {entries!r} is not a list; write a list of entries, each with path: and type:.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not all(isinstance(name, str) for name in entry):
            raise ConfigError(f"{key}[{number}]: {entry!r} is not a block of keys; write path: and type: under it.")
