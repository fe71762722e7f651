"""Stepwise DPO (sDPO, arXiv 2403.19270) for Axolotl: `rl: sdpo`.

The core of the package is importable without the host. ``SDPOPlugin``, ``SDPOArgs`` and ``StepContext`` are resolved on
first use: a host that loads installed plugins by itself imports this package for every config.
"""

from typing import TYPE_CHECKING

from sdpo_plugin import crash, plugin_name
from sdpo_plugin.versions import cannot_load

if TYPE_CHECKING:
    from sdpo_plugin.args import SDPOArgs
    from sdpo_plugin.host.plugin import SDPOPlugin
    from sdpo_plugin.step_hooks import StepContext

__version__ = "0.1.0"
__all__ = ["SDPOArgs", "SDPOPlugin", "StepContext", "__version__"]

plugin_name.watch_imports()


def __getattr__(name: str) -> object:
    if name == "SDPOArgs":
        from sdpo_plugin.args import SDPOArgs

        return SDPOArgs
    if name == "StepContext":
        from sdpo_plugin.step_hooks import StepContext

        return StepContext
    if name != "SDPOPlugin":
        raise plugin_name.no_such_attribute(name)
    try:
        from sdpo_plugin.host.plugin import SDPOPlugin
    except ImportError as error:
        # Axolotl swallows an ImportError and trains on without the plugin; this must not happen.
        crash.install()
        raise cannot_load(error) from error
    return SDPOPlugin
