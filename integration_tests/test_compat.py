"""The installed host is supported; for another one, the refusal names what is different."""

from __future__ import annotations

import pytest

from integration_tests.harness.launch import Host
from sdpo_plugin.losses import LOSS_TYPES

CONTRACTS = "integration_tests.harness.contracts"


def test_installed_host_is_supported(host: Host) -> None:
    """Fails first, and by name, when the host is upgraded."""
    assert host.python(f"{CONTRACTS}:installed_host") is None


def test_each_symbol_relied_on_is_checked(host: Host) -> None:
    """Missing or with another signature: the message names owner, symbol and parameters."""
    entries = host.python(f"{CONTRACTS}:broken_symbols")
    assert len(entries) >= 10
    for entry in entries:
        promise = f"{entry['where']}({', '.join(entry['parameters'])})"
        assert promise in entry["missing"]
        assert "it is missing" in entry["missing"] or "it takes" in entry["missing"]
        assert promise in entry["changed"]
        assert "it takes self, surprise" in entry["changed"]
        assert entry["restored"] is None


def test_versions_out_of_range(host: Host) -> None:
    """The message says what is installed, what is supported, and what to run."""
    good = {"axolotl": ["0.19.0", "0.20.0", "0.21.7"], "trl": ["1.9.3", "1.14.1"]}
    bad = {"axolotl": ["0.17.0", "0.18.0"], "trl": ["1.8.9"]}
    assert set(host.python(f"{CONTRACTS}:other_versions", good).values()) == {None}
    refusals = host.python(f"{CONTRACTS}:other_versions", bad)
    assert len(refusals) == 3
    for what, message in refusals.items():
        package, _, _ = what.partition(" ")
        assert f"{what} is installed" in message
        assert f"pip install '{package}" in message


@pytest.mark.parametrize(("package", "number"), [("axolotl", "0.22.0"), ("axolotl", "1.0.dev1"), ("trl", "1.15.0")])
def test_newer_host_is_tried(host: Host, package: str, number: str) -> None:
    """With a warning where all contracts hold; one that breaks a contract is refused, naming it."""
    tried = host.python(f"{CONTRACTS}:newer_version", package, number, False)
    assert tried["refusal"] is None
    (warning,) = tried["warnings"]
    assert warning.startswith(
        f"{package} {number} is newer than what this version of sdpo_plugin is tested with ({package}>="
    )
    refused = host.python(f"{CONTRACTS}:newer_version", package, number, True)
    assert "relies on axolotl.train.save_trained_model(cfg, trainer, model)" in refused["refusal"]
    assert f"{package} {number}" in refused["refusal"]
    assert "it is missing" in refused["refusal"]


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("axolotl.train", "setup_reference_model", "cfg, tokenizer, processor"),
        ("axolotl.train", "save_trained_model", "cfg, trainer, model"),
        ("axolotl.evaluate", "setup_model_and_tokenizer", "cfg"),
        ("axolotl.evaluate", "evaluate_dataset", "trainer, dataset, dataset_type, flash_optimum"),
    ],
)
def test_a_patch_and_its_undo(host: Host, module: str, name: str, parameters: str) -> None:
    """Idempotent both ways, undone to the very same function, refused where the target is not what it was."""
    seen = host.python(f"{CONTRACTS}:patch_and_undo", module, name)
    for what in ("other signature", "missing"):
        assert f"{module}.{name}({parameters})" in seen.pop(what)
    assert [what for what, held in seen.items() if held is not True] == []


def test_patches_are_for_our_configs(host: Host) -> None:
    """Each lets every other config through."""
    seen = host.python(f"{CONTRACTS}:what_patches_do")
    assert [what for what, held in seen.items() if held is not True] == []


def test_losses_are_those_of_trl(host: Host) -> None:
    """The config accepts exactly the losses that the trainer knows."""
    assert host.python(f"{CONTRACTS}:losses_of_trl") == list(LOSS_TYPES)
