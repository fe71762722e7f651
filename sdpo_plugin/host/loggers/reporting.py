"""Which of the trainer's callbacks report to a logger: transformers' for `report_to`, and the host's beside them."""

from transformers import TrainerCallback
from transformers.integrations import (
    CometCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sdpo_plugin.host.loggers.comet import Comet
from sdpo_plugin.host.loggers.logger import Chain, Logger
from sdpo_plugin.host.loggers.mlflow import MLflow
from sdpo_plugin.host.loggers.tensorboard import TensorBoard
from sdpo_plugin.host.loggers.trackio import Trackio
from sdpo_plugin.host.loggers.wandb import WandB

KNOWN: dict[type[TrainerCallback], type[Logger]] = {
    TensorBoardCallback: TensorBoard,
    WandbCallback: WandB,
    MLflowCallback: MLflow,
    TrackioCallback: Trackio,
    CometCallback: Comet,
}
# By name: their modules import the logger. The first ones upload the config where training begins.
OF_THE_HOST = (
    *("SaveAxolotlConfigtoWandBCallback", "SaveAxolotlConfigtoMlflowCallback", "SaveAxolotlConfigtoCometCallback"),
    *("SaveAxolotlConfigtoTrackioCallback", "SaveAxolotlConfigtoSwanLabCallback", "CustomSwanLabCallback"),
)


def logger_of(callback: TrainerCallback, chain: Chain) -> Logger | None:
    """The logger that a callback reports to; None for a callback of another kind, which stays the trainer's."""
    for kind, logger in KNOWN.items():
        if isinstance(callback, kind):
            return logger(callback, chain)
    kind = type(callback)
    of_the_host = kind.__module__.startswith("axolotl.") and kind.__name__ in OF_THE_HOST
    return Logger(callback, chain) if of_the_host or isinstance(callback, _OTHERS) else None


_OTHERS = tuple(INTEGRATION_TO_CALLBACK.values())
