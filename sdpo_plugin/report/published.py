"""What of a run may stand in a model card, which may be published: names in place of places, no secrets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from sdpo_plugin.run_dir.drift import without_secrets
from sdpo_plugin.scrub import last_part, without_place

# Of a machine and of loggers: who runs where says nothing of the model.
LEFT_OUT = re.compile(
    r"(wandb|mlflow|comet|trackio|swanlab|otel|ray)_.*|.*_tracking_uri|axolotl_config_path|env|launcher"
)
HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class BaseModel:
    """M_0 as a card names it.

    Attributes:
        name: its hub id, or the last part of the directory that it lies in.
        hub_id: of it, or, for a local model, that of the model that it says it was made from; None: neither is known.
        license: `license`, `license_name` and `license_link`, as far as the base's card has them.
    """

    name: str
    hub_id: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on_hub(self) -> bool:
        """Whether ``hub_id`` is M_0 itself."""
        return self.hub_id == self.name


def is_hub_id(text: object) -> TypeGuard[str]:
    """Whether a text has the form "owner/name"; so has a relative path, which only the disk can tell."""
    return isinstance(text, str) and HUB_ID.fullmatch(text) is not None


def shown(text: str, on_hub: Mapping[str, str]) -> str:
    """A data set or model as the report names it: whole where it is on the hub or the web, else its last part."""
    return text if text in on_hub else without_place(text) if "://" in text else last_part(text)


def shown_config(value: Any) -> Any:
    """A config as JSON values, without secrets, without what is not set, and with names in place of places."""
    return _shown(without_secrets(value))


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if item is not None and not LEFT_OUT.fullmatch(key)}
        return {key: _shown(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return value if value is None or isinstance(value, int | float) else without_place(str(value))
