"""The reproduction runs from data to figures; its results are in docs/reproduction.md and take half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration_tests.harness.launch import Host

BY_ROW = 12  # easy to hard by row, T = 4: needs a pass of the base model and trains four steps of one batch
PLAIN = 0


def test_variants_are_trained_and_measured(host: Host, tmp_path: Path) -> None:
    found = host.python("integration_tests.harness.reproduction:shrunk", tmp_path, [BY_ROW, PLAIN])
    assert list(found) == [
        "S, the base model",
        "easy to hard by row, T = 4",
        "plain DPO on all data",
        "again",
    ]
    base, stepwise, plain, again = ({k: v for k, v in of.items() if k != "seconds"} for of in found.values())
    assert base["implicit_reward_accuracy"] == 0  # no γ is above itself
    assert stepwise == again  # the same run has the same numbers, to the last bit
    assert len({base["gamma"], stepwise["gamma"], plain["gamma"]}) == 3
    for figures in (base, stepwise, plain):  # four sources of 50 held-out rows
        by_source = [value for key, value in figures.items() if key.startswith("reference_free_accuracy/")]
        assert len(by_source) == 4
        assert figures["reference_free_accuracy"] == pytest.approx(sum(by_source) / 4)
