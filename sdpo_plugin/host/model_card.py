"""TRL's model card, written with every checkpoint."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trl.trainer import base_trainer


@contextmanager
def without_importing_trackio() -> Iterator[None]:
    """Within this context a card asks Trackio for its address only where the run has loaded Trackio.

    Reason: TRL imports it for that question wherever it is installed, as it is with the host; it brings Gradio, and
    two seconds go by. A run that logs to it has imported it before. Range: TRL 1.9 to 1.14. Remove when TRL asks
    ``sys.modules`` first.
    """
    original = base_trainer.get_trackio_space_url
    base_trainer.get_trackio_space_url = lambda: original() if "trackio" in sys.modules else None
    try:
        yield
    finally:
        base_trainer.get_trackio_space_url = original
