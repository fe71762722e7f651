"""Data that cannot be read: one message that names the step and its sources, whoever stumbled over it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from datasets.exceptions import DatasetsError

from sdpo_plugin.errors import DataError

# What the host's loaders, the readers of `datasets` and the prompt strategies raise on data that is not right.
READ_ERRORS = (
    DatasetsError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    StopIteration,  # the JSON reader of `datasets`, on an empty file
    pa.ArrowException,
)
STRATEGY_LOGGER = "axolotl.prompt_strategies.base"


@contextmanager
def explained(step: str, sources: str) -> Iterator[None]:
    """Raise what goes wrong while the data of ``step`` are read as a ``DataError``.

    Raises:
        DataError: with the innermost reason; the error itself is its cause.
    """
    logger = logging.getLogger(STRATEGY_LOGGER)
    logger.addFilter(_without_traceback)
    try:
        yield
    except READ_ERRORS as error:
        raise DataError(
            f"step {step}: {sources} cannot be read as preference data: {_reason(error)}. Check path, type, "
            "split and the field_ keys of the entry: it works here exactly where it works under rl: dpo."
        ) from error
    finally:
        logger.removeFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """The host logs a `type` it does not know with the traceback of its own import; the first line says it all."""
    record.exc_info = None
    return True


def _reason(error: BaseException) -> str:
    """The innermost cause in one line without its full stop; a KeyError says only the key."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):
        return "it has no rows"
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"a row has no field {text}" if isinstance(error, KeyError) else text
