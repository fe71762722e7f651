"""The command that compares a run with the host's own chain, as anyone runs it, as small as it can be."""

from __future__ import annotations

import re
import sys

from integration_tests.harness.env import ROOT
from integration_tests.harness.fresh import run_command
from integration_tests.harness.launch import Host


def test_a_run_is_compared_with_the_chain(host: Host) -> None:
    """Every repetition, medians and their ratios, memory; and that both sides end with the same weights."""
    command = [sys.executable, "-m", "integration_tests.benchmarks.against_host", "--model", "260K"]
    command += ["--vocabulary", "300", "--sets", "hh", "--rows", "8", "--repeat", "1", "--optimizer", "sgd"]
    said = run_command(command, ROOT, host.scratch).check().log_text
    figures = r"\d+\.\d s +\d+\.\d\d pairs/s +\d+ MB"
    assert len(re.findall(rf"^(?:host|packed) +{figures}", said, re.MULTILINE)) == 4
    (off, moved) = map(float, re.findall(r"weights within (\S+) of the chain's; .* by up to (\S+)", said)[0])
    assert off <= 1e-6 < 1e-5 < moved
    assert re.search(r"of the host: wall \d+\.\d\d, pairs/s \d+\.\d\d, memory \d+\.\d\d", said)
    assert re.search(r"the tokens allow [34]\.\d\d times", said)
