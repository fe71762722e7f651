"""Data that cannot be read: one message with step, source and row, whichever library raised the error."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import pyarrow as pa
from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.utils.dict import DictDefault
from datasets.exceptions import DatasetsError
from multiprocess.pool import RemoteTraceback
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.prepared import raw_parts
from sdpo_plugin.host.data.row_errors import ROW_ERRORS, Strategy, first_bad_row, first_null_as_text
from sdpo_plugin.run_dir.files import free_bytes
from sdpo_plugin.scrub import reveals, without_credentials

# What the host's loaders, the readers of `datasets` and the prompt strategies raise on data that is not right.
READ_ERRORS = (
    DatasetsError,
    *ROW_ERRORS,
    OSError,
    ImportError,  # a library that reads this kind of storage is not installed
    StopIteration,  # the JSON reader of `datasets`, on an empty file
    pa.ArrowException,
)
# Libraries that read storage far away raise errors of their own; none of them has to be installed.
REMOTE_LIBRARIES = frozenset("aiohttp aiobotocore botocore gcsfs google azure adlfs oci ocifs httpx requests".split())
NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file is too large"}
STRATEGY_LOGGER = "axolotl.prompt_strategies.base"


def source_name(entry: Any) -> str:
    """The name of a data set entry in plan and report: its path, without user names, tokens and queries of URLs."""
    extras = [str(entry[key]) for key in ("name", "split") if entry.get(key)]
    return ":".join([without_credentials(str(entry.get("path"))), *extras])


class explained:  # noqa: N801 - used like a function
    """Raise what goes wrong while the host reads ``cfg.datasets`` for ``step`` as a ``DataError``.

    Args:
        step: its name.
        cfg: what the host loads.
        label: which key of the config the entries stand under, where it is not `datasets:`.

    Raises:
        DataError: with source, row and fields where a row is the cause; the error itself is its cause.
    """

    def __init__(self, step: str, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, label: str = "") -> None:
        self._step, self._cfg, self._tokenizer, self._label = step, cfg, tokenizer, label
        self._logger = logging.getLogger(STRATEGY_LOGGER)

    def __enter__(self) -> None:
        self._logger.addFilter(_without_traceback)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._logger.removeFilter(_without_traceback)
        if error is None or isinstance(error, DataError) or not (_is_known(error) or _no_space(error)):
            return
        raise DataError(f"step {self._step}: {self._label}{self._message(error)}") from error

    def _message(self, error: BaseException) -> str:
        sources = ", ".join(source_name(entry) for entry in self._cfg.datasets)
        full = _no_space(error)
        if full is not None:
            return _about_space(full, sources, self._cfg)
        if isinstance(error, ROW_ERRORS):
            with _quietly():
                found = _bad_row(self._cfg, self._tokenizer)
            if found is not None:
                number, cause = found
                source = source_name(self._cfg.datasets[number])
                return f"{source} cannot be read as preference data: {cause}{_counting(self._cfg.datasets[number])}"
        far = [str(entry.path) for entry in self._cfg.datasets if "://" in str(entry.path)]
        if far:
            return (
                f"{sources} cannot be read: it cannot be reached from here, or is not there: {_reason(error, far)}. "
                "Check the address, the network and your credentials, or download it and set path to the file."
            )
        return (
            f"{sources} cannot be read as preference data: {_reason(error)}. Check path, type, "
            "split and the field_ keys of the entry: it works here exactly where it works under rl: dpo."
        )


def require_no_null_text(
    step: str, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, parts: list[Any], label: str = ""
) -> None:
    """Refuse rows with a field that is null where a strategy would write the word None in its place.

    Raises:
        DataError: it names source, row and field.
    """
    for number, rows in enumerate(parts):
        strategy = Strategy.of(cfg, tokenizer, number, rows.column_names)
        assert strategy is not None, "the host has read the rows with it"
        cause = first_null_as_text(rows, strategy)
        if cause is not None:
            entry = cfg.datasets[number]
            raise DataError(f"step {step}: {label}{source_name(entry)}: {cause}{_counting(entry)}")


def _bad_row(cfg: DictDefault, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
    """The number of an entry, and what is wrong with its first bad row."""
    try:
        for number, rows in enumerate(raw_parts(cfg)):
            strategy = Strategy.of(cfg, tokenizer, number, rows.column_names)
            cause = None if strategy is None else first_bad_row(rows, strategy)
            if cause is not None:
                return number, cause
    except READ_ERRORS:  # the source itself cannot be read: the first error says why
        return None
    return None


def _counting(entry: Any) -> str:
    where = "of its file" if "[" not in str(entry.get("split") or "") else f"of those that split: {entry.split} takes"
    return f"Rows {where} are counted from 0. Check type and the field_ keys of the entry, or mend the row."


def _is_known(error: BaseException) -> bool:
    return isinstance(error, READ_ERRORS) or type(error).__module__.split(".")[0] in REMOTE_LIBRARIES


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, without the traceback text of a worker process."""
    while error is not None and not isinstance(error, RemoteTraceback):
        yield error
        error = error.__cause__


def _no_space(error: BaseException) -> OSError | None:
    found = (one for one in _causes(error) if isinstance(one, OSError) and one.errno in NO_SPACE)
    return next(found, None)


def _about_space(error: OSError, sources: str, cfg: DictDefault) -> str:
    prepared = Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH)
    caches = {"dataset_prepared_path": prepared, "the cache of datasets, below HF_HOME": Path(_cache())}
    free = ", ".join(f"{name}: {path} ({free_bytes(path) / 2**30:.1f} GiB free)" for name, path in caches.items())
    assert error.errno is not None
    at = f" at {error.filename}" if error.filename else ""
    return (
        f"{sources} could not be prepared: {NO_SPACE[error.errno]}{at}: {os.strerror(error.errno)}. The host writes "
        f"to {free}. Free some space or raise the quota, or set dataset_prepared_path, or HF_HOME in the environment, "
        "to a larger disk."
    )


def _cache() -> str:
    return str(datasets.config.HF_DATASETS_CACHE)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings: a second reading has nothing new to log."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _without_traceback(record: logging.LogRecord) -> bool:
    """The host logs a `type` it does not know with the traceback of its own import; the first line says it all."""
    record.exc_info = None
    return True


def _reason(error: BaseException, addresses: list[str] | None = None) -> str:
    """The innermost cause in one line without its full stop; a KeyError says only the key."""
    *_, error = _causes(error)
    if isinstance(error, StopIteration):
        return "no file was found there" if addresses else "it has no rows"
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if any(reveals(without_credentials(text), address) for address in addresses or ()):
        return f"{type(error).__name__} (its text repeats a part of the credentials in the address, and is left out)"
    text = without_credentials(text)
    return f"a row has no field {text}" if isinstance(error, KeyError) else text
