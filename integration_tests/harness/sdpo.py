"""Stepwise DPO runs: an ordinary `rl: dpo` config and the two edits that make it `rl: sdpo`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.data import Config, write_config

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host


PADDED = {"packed": False}  # TRL's own batches: for what is claimed to the bit of a separate run
PACKED = {"packed": True}  # or the run is refused


def sdpo_config(config: Mapping[str, Any], **overrides: Any) -> Config:
    """The same config as `rl: sdpo`; an override of None removes the key."""
    made = {**config, "rl": "sdpo", "plugins": ["sdpo_plugin.SDPOPlugin"], **overrides}
    return {key: value for key, value in made.items() if value is not None}


def run_sdpo(host: Host, config: Mapping[str, Any], **options: Any) -> Path:
    """Train a config as `rl: sdpo` and return its output directory; the config file is written beside that.

    A config that is `rl: sdpo` already is taken as it is. The options are those of `Host.start`.
    """
    made = config if config["rl"] == "sdpo" else sdpo_config(config)
    out = Path(made["output_dir"])
    host.train(write_config(out.parent / "config.yaml", made), **options).check()
    return out


def read_report(out: Path) -> dict[str, Any]:
    """The report of a finished run."""
    return dict(json.loads((out / "sdpo" / "report.json").read_text(encoding="utf-8")))
