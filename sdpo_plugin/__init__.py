"""Stepwise DPO (sDPO, arXiv 2403.19270) for Axolotl: `plugins: [sdpo_plugin.SDPOPlugin]`, `rl: sdpo`.

The core of the package is importable without the host; ``SDPOPlugin`` is resolved on first use.
"""

from typing import TYPE_CHECKING

from sdpo_plugin import crash, misspelt
from sdpo_plugin.args import SDPOArgs
from sdpo_plugin.errors import UnsupportedHostError

if TYPE_CHECKING:
    from sdpo_plugin.host.plugin import SDPOPlugin

__version__ = "0.1.0"
__all__ = ["SDPOArgs", "SDPOPlugin", "__version__"]

misspelt.watch_imports()


def __getattr__(name: str) -> object:
    if name != "SDPOPlugin":
        raise misspelt.no_such_attribute(name)
    crash.install()
    try:
        from sdpo_plugin.host.plugin import SDPOPlugin
    except ImportError as error:
        # Axolotl swallows an ImportError and trains on without the plugin; this must not happen.
        raise UnsupportedHostError(
            f"sdpo_plugin cannot load beside the installed packages: {error}. "
            "Install a supported host: pip install 'axolotl[deepspeed]>=0.19,<0.20'."
        ) from error
    return SDPOPlugin
