"""The beginning of the run of each logger, or its going on in a process that resumes the chain."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from sdpo_plugin.host.loggers.logger import Logger, Value
from sdpo_plugin.run_dir.loggers import LoggerRuns, read_logger_runs, write_logger_runs
from sdpo_plugin.run_dir.paths import RunDir

LOG = logging.getLogger("axolotl.sdpo_plugin")


def begin_runs(
    loggers: Sequence[Logger], run: RunDir, begin: Callable[[], None], parameters: Callable[[], Mapping[str, Value]]
) -> None:
    """Begin them, or go on in those of the process before, and keep what they are known by.

    Args:
        loggers: on rank 0; none on another rank, where their callbacks do nothing.
        run: the run directory.
        begin: calls the callbacks' ``on_train_begin``.
        parameters: of the steps.
    """
    kept = _read(run) if loggers else LoggerRuns()
    own: dict[str, Mapping[str, str]] = {logger.name: kept.runs.get(logger.name, {}) for logger in loggers}
    environment: dict[str, str] = {}
    for logger in loggers:
        before = partial(logger.before, own[logger.name], kept.processes)
        environment |= logger.harmless("going on in its earlier run", before, dict[str, str]())
    with _set(environment):
        begin()
    found: dict[str, dict[str, str]] = {}
    for logger in loggers:
        begun = partial(logger.begun, own[logger.name], kept.processes)
        logger.harmless("reading its earlier points", begun, None)
        logger.harmless("logging the parameters of the steps", partial(_log_parameters, logger, parameters), None)
        found[logger.name] = logger.harmless("asking for the name of its run", logger.identity, dict[str, str]())
    known = {name: identity for name, identity in found.items() if identity}
    if known:
        _write(run, LoggerRuns(kept.processes + 1, {**kept.runs, **known}))


def _log_parameters(logger: Logger, parameters: Callable[[], Mapping[str, Value]]) -> None:
    logger.parameters(parameters())


def _read(run: RunDir) -> LoggerRuns:
    try:
        return read_logger_runs(run)
    except (OSError, ValueError) as error:
        LOG.warning("%s cannot be read (%s): loggers begin other runs.", run.loggers, error)
        return LoggerRuns()


def _write(run: RunDir, runs: LoggerRuns) -> None:
    try:
        write_logger_runs(run, runs)
    except OSError as error:
        LOG.warning("%s cannot be written (%s): where the run is resumed, loggers begin others.", run.loggers, error)


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    earlier = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for key, value in earlier.items():
            if value is None:
                os.environ.pop(key, None)  # MLflow takes its own out
            else:
                os.environ[key] = value
