"""Garbage: models that are let go, and collections that take no longer than their garbage is worth."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Python 3.12 freezes 375 objects of its own when it starts; others freeze what they have imported.
FROZEN_AT_START = 10_000


def free_memory() -> None:
    """Give back what the last reference to a model has let go."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pass_over_imports() -> None:
    """From now on the garbage collector passes over all that exists, until ``look_at_all_again``.

    The host has imported a million objects when it knows its config, and half as many again when it loads the model;
    it collects garbage three times where it loads one, and Python by itself as imports go on. A process that has frozen
    objects for a reason of its own keeps them. At its end Python collects all: extension modules complain of what
    stays.
    """
    global _is_ours  # the collector is one a process, and so is whose the frozen objects are
    if _is_ours or gc.get_freeze_count() < FROZEN_AT_START:
        gc.freeze()
        atexit.unregister(look_at_all_again)
        atexit.register(look_at_all_again)
        _is_ours = True


def look_at_all_again() -> None:
    """Undo ``pass_over_imports``; nothing where it has done nothing."""
    global _is_ours
    if _is_ours:
        gc.unfreeze()
        _is_ours = False


_is_ours = False


@contextmanager
def quick_collections() -> Iterator[None]:
    """Within this context the garbage collector passes over all that exists at its beginning.

    accelerate collects garbage wherever an engine or a model is released, some eight times in a run of two steps. With
    all that the host has imported each collection takes 0.4 s; nothing of it is garbage.
    """
    gc.collect()
    pass_over_imports()
    try:
        yield
    finally:
        look_at_all_again()
