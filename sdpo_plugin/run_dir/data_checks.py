"""What was found wrong with the pairs, kept with the run for its report: `sdpo/data_checks.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_core import from_json

from sdpo_plugin.pair_checks import KINDS, SourceChecks
from sdpo_plugin.run_dir.files import explaining_write_errors, write_json
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.stored import checked
from sdpo_plugin.schema import STRICT

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DataChecks:
    """All that was found.

    Attributes:
        check_data: `sdpo.check_data`, as the run was started: "error" or "warn".
        sources: in the order of the steps.
    """

    __pydantic_config__ = STRICT

    check_data: str
    sources: tuple[SourceChecks, ...]


def save_checks(run: RunDir, checks: DataChecks) -> None:
    """Write it, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with explaining_write_errors(run.data_checks):
        write_json(run.data_checks, {"schema_version": SCHEMA_VERSION, **asdict(checks)})


def add_checks(run: RunDir, made: SourceChecks) -> None:
    """Write what was found in the rows that a hook has made beside what was found before.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        before = load_checks(run.data_checks)
    except (OSError, ValueError):  # removed or damaged meanwhile: only the report reads it, and says so
        return
    others = tuple(source for source in before.sources if source.source != made.source)
    save_checks(run, DataChecks(before.check_data, (*others, made)))


def load_checks(path: Path) -> DataChecks:
    """What was written.

    Raises:
        OSError: the file is missing, or cannot be read.
        ValueError: it is torn, of another schema version, or not what it should be.
    """
    content = from_json(path.read_bytes(), allow_inf_nan=False)
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"not checks of schema version {SCHEMA_VERSION}")
    checks = checked(DataChecks, content)
    for source in checks.sources:
        if source.found.keys() != KINDS.keys():
            raise ValueError(f"checks of {source.source} are of {', '.join(source.found)}")
    return checks
