"""sDPO as it is done by hand with the unmodified host: one full `rl: dpo` run a step, each from the model before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.data import write_config

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host


def run_chain(
    host: Host,
    config: Mapping[str, Any],
    datasets: Sequence[Mapping[str, Any]],
    out: Path,
    steps: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> list[Path]:
    """Run one `rl: dpo` training a data set; return the model directories of M_1 … M_T.

    `steps` holds overrides for single steps. A LoRA chain needs more than this: the host starts every adapter afresh.
    """
    model, models = config["base_model"], []
    for index, dataset in enumerate(datasets):
        folder = out / f"chain-{index + 1}"
        step = {
            **{key: value for key, value in config.items() if key != "sdpo"},
            **(steps[index] if index < len(steps) else {}),
            "base_model": str(model),
            "datasets": [dict(dataset)],
            "output_dir": str(folder / "out"),
            "dataset_prepared_path": str(folder / "prepared"),
        }
        host.train(write_config(folder / "config.yaml", step), **options).check()
        model = folder / "out"
        models.append(model)
    return models
