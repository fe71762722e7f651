"""The hosts that this package is tested with. Of each: the oldest release, and the first that it has not seen."""

from sdpo_plugin.errors import UnsupportedHostError

TESTED = {"axolotl": ("0.19", "0.22"), "trl": ("1.9", "1.15")}


def requirement(package: str) -> str:
    """As pip takes it, e.g. "axolotl>=0.19,<0.22"."""
    oldest, first_unseen = TESTED[package]
    return f"{package}>={oldest},<{first_unseen}"


def cannot_load(error: ImportError) -> UnsupportedHostError:
    """The error for a host without a module that this package imports."""
    host = requirement("axolotl").replace("axolotl", "axolotl[deepspeed]")
    return UnsupportedHostError(
        f"sdpo_plugin cannot load beside the installed packages: {error}. Install a supported host: "
        f"pip install '{host}'."
    )
