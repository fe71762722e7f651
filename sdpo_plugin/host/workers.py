"""Data loader workers that leave a signal to their run, and end when their run ends them, or has ended."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from typing import Any

from accelerate.data_loader import DataLoaderAdapter
from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_TO_NOTICE = 1.0  # that a run was killed and its workers are alone


def shielded(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A data loader whose worker processes survive SIGTERM and SIGINT sent to the whole process group.

    A scheduler or a terminal signals every process; without this the workers die, and the run dies in the middle of an
    update. Only the run itself, which terminates its workers when it exits, ends them.
    """
    base = loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader
    base.worker_init_fn = partial(_shield, base.worker_init_fn)
    return loader


def _shield(first: Callable[[int], None] | None, worker: int) -> None:
    """Runs in the worker. Signals are not ignored but received, for who sent one decides what it means: a worker that
    ignores them would survive the `terminate()` of its run too, and the run would wait for it for ever."""
    if sys.platform == "linux":  # elsewhere a signal does not say who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_the_run, daemon=True).start()
    if first is not None:
        first(worker)


def _end_with_the_run() -> None:
    run = parent_process()
    assert run is not None
    while run.is_alive():
        received = signal.sigtimedwait(SIGNALS, SECONDS_TO_NOTICE)
        if received is not None and received.si_pid == run.pid:
            break
    os._exit(0)  # as PyTorch's own handler does
