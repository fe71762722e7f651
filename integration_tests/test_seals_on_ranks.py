"""What is sealed is read by all ranks at once: rank 0 alone would keep the others waiting for as long as it reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from integration_tests.harness.data import base_config, chat_set, intel_set, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.launch import Host
from integration_tests.harness.sdpo import sdpo_config


def test_ranks_share_what_is_read(host: Host, model: Path, tmp_path: Path) -> None:
    """Each file of a checkpoint and of a step's model once in each of two steps, by one of two ranks; the seal names
    them all."""
    sets = [chat_set(tmp_path / "d1.jsonl", 8, 1), intel_set(tmp_path / "d2.jsonl", 8, 2)]
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "micro_batch_size": 2}
    made = sdpo_config(base_config(model, sets, tmp_path, **saves), plugins=PLUGINS)
    train(host, write_config(tmp_path / "config.yaml", made), f"seals:{tmp_path}", ranks=2).check()
    noted = [(tmp_path / f"rank-{rank}").read_text(encoding="utf-8").splitlines() for rank in (0, 1)]
    shares = [[line.split(" ", 1) for line in lines] for lines in noted]
    for directory in ("checkpoint-1", "staging"):
        names = [[name for place, name in share if place == directory] for share in shares]
        assert all(names), "each rank has read some"
        assert set(Counter(names[0] + names[1]).values()) == {2}
    out = Path(made["output_dir"])
    for step in ("step-1", "step-2"):
        sealed = json.loads((out / step / "sdpo_seal.json").read_text(encoding="utf-8"))["files"]
        assert set(sealed) == {name for share in shares for place, name in share if place == "staging"}
