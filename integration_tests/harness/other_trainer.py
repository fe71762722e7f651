"""A second plugin that brings a trainer of its own, as the host lets any plugin do."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import Trainer


class OtherTrainerPlugin(BasePlugin):
    """Answers with a trainer that knows no steps."""

    def get_trainer_cls(self, cfg: Any) -> type[Trainer]:
        """Asked by the host when it builds the trainer."""
        return Trainer
