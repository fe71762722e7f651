"""The figures of a report as PNG, where matplotlib is installed; a report is whole without them."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

LOG = logging.getLogger("axolotl.sdpo_plugin")
CAPTIONS = {
    "gamma_ref.png": "γ of the reference on each step's data, before the step",
    "training.png": "loss and reward margin over the whole run",
    "matrices.png": "models by data: accuracies and mean γ",
}
"""What each picture shows, by the name of its file."""


def pictures(report: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG of each figure that has something to show, by the name of its file.

    Takes a second, half of it for the import of matplotlib.
    """
    try:
        from sdpo_plugin.report import figures
    except ImportError as error:
        _say_what_to_install(str(error))
        return {}
    drawn = {}
    for name, draw in zip(CAPTIONS, (figures.gamma_ref, figures.training, figures.matrices), strict=True):
        try:
            picture = draw(report)
        except Exception as error:  # noqa: BLE001 - whatever a drawing library raises, no training is lost for a picture
            LOG.warning("sdpo/%s was not drawn: %s: %s", name, type(error).__name__, error)
            continue
        if picture is not None:
            drawn[name] = picture
    return drawn


@cache
def _say_what_to_install(why: str) -> None:
    """Once in a process."""
    LOG.warning("the report has no PNGs (%s): pip install 'matplotlib>=3.9'", why)
