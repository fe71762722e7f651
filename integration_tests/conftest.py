"""Fixtures that the tests of this folder share: one warm host, one tiny model, two preference sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests.harness.data import Config, chat_set, intel_set
from integration_tests.harness.launch import Host, start_host
from integration_tests.harness.models import make_model

HERE = Path(__file__).parent


# Whole files go to one of two processes, in this order: a long one that began late would leave the other with nothing.
LONGEST = "death fsdp2 endings resume commands zero3 lm_eval curricula packed".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts the host; the longest files come first."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
    turns = {f"test_{name}": turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path.stem, len(turns)) if HERE in item.path.parents else len(turns))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The host, imported once; every run is a fork of it."""
    with start_host(tmp_path_factory.mktemp("host")) as warm:
        yield warm


@pytest.fixture(scope="session")
def model(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer: M_0."""
    return make_model(host, tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="session")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """`datasets:` entries of D_1 (24 rows, and 2 too long ones that the host drops) and D_2 (32 rows)."""
    folder = tmp_path_factory.mktemp("sets")
    return [chat_set(folder / "d1.jsonl", 24, 1, long_rows=2), intel_set(folder / "d2.jsonl", 32, 2)]
