"""The messages of a run that was refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration_tests.harness.results import Result

_OURS = re.compile(r"^(?:\[rank\d+\]: )?sdpo_plugin: (.*)$", re.MULTILINE)


TO_GO_ON = "what was finished is in "


def messages(result: Result) -> list[str]:
    """Every line that `sdpo_plugin` ended the run with, over all ranks, but for the last one."""
    return [line for line in _OURS.findall(result.log_text) if not line.startswith(TO_GO_ON)]


def ways_to_go_on(result: Result) -> list[str]:
    """The last lines of a run that died when it had begun: how to resume it."""
    return [line for line in _OURS.findall(result.log_text) if line.startswith(TO_GO_ON)]


def refused(result: Result, out: Path, *parts: str, lines: int = 1) -> str:
    """Assert that the run ended before any training with one message that has these parts; return the message."""
    said = messages(result)
    assert result.returncode != 0
    assert not result.timed_out
    assert "Traceback" not in result.log_text, result.log_text[-4000:]
    assert len(said) == lines, f"{said}\n{result.log_text[-2000:]}"
    for part in parts:
        assert part in "\n".join(said), f"{part!r} is not in {said}"
    for sign in ("log-probs of D_1", "step 1/", "'loss':"):
        assert sign not in result.log_text, f"{sign!r} in the log: training had begun"
    assert not list(out.rglob("*.safetensors"))
    return "\n".join(said)
