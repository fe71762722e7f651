"""The plugin as the host sees it, which costs a config that is not ours nothing.

Where the host loads installed plugins by itself (entry points, Axolotl 0.21) it asks this class about every config of
its environment. What a run of ours needs is imported when the first such config is registered.
"""

from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.schemas.enums import RLType

from sdpo_plugin import crash
from sdpo_plugin.plugin_name import PACKAGE
from sdpo_plugin.recognition import concerns_us
from sdpo_plugin.versions import cannot_load

if TYPE_CHECKING:
    from axolotl.common.datasets import TrainDatasetMeta
    from axolotl.utils.dict import DictDefault

    from sdpo_plugin.host.hooks import Hooks

RL_OF_THE_HOST = {kind.value for kind in RLType}


class SDPOPlugin(BasePlugin):  # type: ignore[misc]  # the host ships no types
    """Stepwise DPO for Axolotl: `rl: sdpo`, and `plugins: [sdpo_plugin.SDPOPlugin]` where the host needs the line."""

    def __init__(self) -> None:
        super().__init__()
        self._is_concerned = True  # nothing is registered yet: whoever asks for the schema gets all of it
        self._hooks: Hooks | None = None

    def get_input_args(self) -> str | None:
        """The schema of the `sdpo:` block; None for a config that does not concern us."""
        return f"{PACKAGE}.args.SDPOArgs" if self._is_concerned else None

    def register(self, cfg: "DictDefault") -> None:
        """Turn `rl: sdpo` into the host's `rl: dpo` with our trainer, or refuse the config.

        Raises:
            ConfigError: a conflict or a wrong `sdpo:` block; nothing is loaded yet.
            UnsupportedHostError: the config is ours, and the installed host is not one that this package runs on.
        """
        self._is_concerned = concerns_us(cfg, RL_OF_THE_HOST)
        if self._is_concerned:
            self._hooks = self._hooks or _load_hooks()
            self._hooks.register(cfg)
        elif self._hooks is not None:
            self._hooks.stand_aside()

    def on_config_validation_error(self, cfg: "DictDefault") -> None:
        """The host refused the config."""
        if self._hooks is not None:
            self._hooks.stand_aside()

    def load_datasets(self, cfg: "DictDefault", preprocess: bool = False) -> "TrainDatasetMeta | None":
        """Load every source; in `axolotl preprocess` print the plan."""
        return self._hooks.load_datasets(cfg, preprocess) if self._hooks is not None else None

    def pre_model_load(self, cfg: "DictDefault") -> None:
        """Check what the trainer relies on."""
        if self._hooks is not None:
            self._hooks.pre_model_load(cfg)

    def post_model_load(self, cfg: "DictDefault", model: Any) -> None:
        """Put the config of a run that is resumed back."""
        if self._hooks is not None:
            self._hooks.post_model_load(cfg, model)

    def post_trainer_create(self, cfg: "DictDefault", trainer: Any) -> None:
        """Hand the chain to the trainer."""
        if self._hooks is not None:
            self._hooks.post_trainer_create(cfg, trainer)

    def post_train(self, cfg: "DictDefault", model: Any) -> None:
        """Training is done, or all is written."""
        if self._hooks is not None:
            self._hooks.post_train(cfg)

    def post_train_unload(self, cfg: "DictDefault") -> None:
        """The run is over."""
        if self._hooks is not None:
            self._hooks.post_train_unload(cfg)


def _load_hooks() -> "Hooks":
    crash.install()
    try:
        from sdpo_plugin.host.hooks import Hooks
    except ImportError as error:
        raise cannot_load(error) from error
    return Hooks()
