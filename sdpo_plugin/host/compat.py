"""The versions of the host that are supported, and the check that it is what this package relies on.

A host upgrade that breaks something fails here, by name. Code that depends on a version stands here and nowhere else,
each branch with its reason and the release that lets it go. All contracts hold alike on 0.19, 0.20 and 0.21.
"""

import importlib
import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from sdpo_plugin.errors import UnsupportedHostError
from sdpo_plugin.host import relied_on
from sdpo_plugin.host.contracts import Contract
from sdpo_plugin.host.engines.memory import pass_over_imports
from sdpo_plugin.recognition import TRAINER_CLS
from sdpo_plugin.versions import TESTED, cannot_load, requirement

LOG = logging.getLogger("axolotl.sdpo_plugin")


def require_supported_host() -> None:
    """Check the versions, and the contracts with modules. A host that is newer than the tests is tried.

    Raises:
        UnsupportedHostError: a version is too old, or a contract is broken.
    """
    for refusal in older_than_supported():
        raise UnsupportedHostError(refusal)
    require_all(relied_on.AT_REGISTRATION)
    for package in newer_than_tested():
        LOG.warning(
            "%s %s is newer than what this version of sdpo_plugin is tested with (%s). What it relies on is checked "
            "as the run goes on; if a result looks wrong, run: pip install '%s'.",
            *(package, version(package), requirement(package), requirement(package)),
        )


def older_than_supported() -> Iterator[str]:
    """The refusal of each package that is too old."""
    for package, (oldest, _) in TESTED.items():
        if Version(version(package)) < Version(oldest):
            yield (
                f"{package} {version(package)} is installed, and this version of sdpo_plugin supports "
                f"{requirement(package)}; run: pip install '{requirement(package)}'."
            )


def newer_than_tested() -> list[str]:
    """The packages whose installed version the tests have not seen."""
    return [
        package
        for package, (_, first_unseen) in TESTED.items()
        if Version(version(package)) >= Version(f"{first_unseen}.dev0")
    ]


def loads_installed_plugins() -> bool:
    """Whether the host asks for plugins by entry point. Axolotl 0.19 and 0.20 do not; goes when both are given up."""
    return Version(version("axolotl")) >= Version("0.21.dev0")


def require_supported_trainer() -> None:
    """Import the trainer, and check what it relies on. The host has patched what it will patch, and read no weights.

    Raises:
        UnsupportedHostError: the trainer cannot be imported, or a contract is broken.
    """
    try:
        importlib.import_module(TRAINER_CLS.rpartition(".")[0])
        contracts = relied_on.of_the_trainers_classes()
    except ImportError as error:
        raise cannot_load(error) from error
    require_all(contracts)
    pass_over_imports()


def require_trainer_as_built(trainer: Any) -> None:
    """Check the trainer that the host has built, before anything is computed.

    Raises:
        UnsupportedHostError: a contract is broken.
    """
    require_all(relied_on.of_the_trainer(trainer))


def require_all(contracts: Iterable[Contract]) -> None:
    """Check contracts.

    Raises:
        UnsupportedHostError: the first that is broken, by name, and what is found instead.
    """
    for refusal in broken(contracts):
        raise UnsupportedHostError(refusal)


def broken(contracts: Iterable[Contract]) -> Iterator[str]:
    """The refusal of each contract that is broken."""
    for contract in contracts:
        found = contract.broken()
        if found is not None:
            yield (
                f"sdpo_plugin relies on {contract.what}, and in axolotl {version('axolotl')} with trl {version('trl')} "
                f"{found}; run: pip install '{requirement('axolotl')}' '{requirement('trl')}'."
            )
