"""The runs that loggers keep of a chain, by the names that they have there: a resumed chain goes on in them."""

import json
from dataclasses import asdict, dataclass, field

from sdpo_plugin.run_dir.files import write_json
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import checked
from sdpo_plugin.schema import STRICT, Count


@dataclass(frozen=True)
class LoggerRuns:
    """What is kept of them, in `sdpo/loggers.json`. No credentials: ids, names and directories.

    Attributes:
        processes: that have logged so far.
        runs: for each logger what its run is known by there, e.g. {"wandb": {"id": "8f3k2x1c"}}.
    """

    __pydantic_config__ = STRICT

    processes: Count = 0
    runs: dict[str, dict[str, str]] = field(default_factory=dict)


def read_logger_runs(run: RunDir) -> LoggerRuns:
    """What earlier processes of this run have kept; nothing where there is no file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    if not run.loggers.exists():
        return LoggerRuns()
    value = json.loads(run.loggers.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no JSON object")
    return checked(LoggerRuns, value)


def write_logger_runs(run: RunDir, runs: LoggerRuns) -> None:
    """Keep them, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_json(run.loggers, asdict(runs))
