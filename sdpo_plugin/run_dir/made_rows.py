"""Rows that the user's `before_step` makes: kept with the run, so that no resumed run asks for them again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugin import digests
from sdpo_plugin.errors import HookError, OutputError
from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.files import explaining_write_errors, sync_directory, sync_file
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir


@dataclass(frozen=True)
class MadeRows:
    """D_t, as a hook has made it and the host has read it.

    Attributes:
        plan: of the run, with these rows.
        digest: of the file that is kept.
        facts: of the rows, for the identity of the run.
    """

    plan: Plan
    digest: str
    facts: Mapping[str, Any]


def draft_of(run: RunDir, name: str) -> Path:
    """The file that the hook writes for the step of this name. What a death leaves of it is swept."""
    place = run.made_rows_of(name)
    return place.with_name(f".{place.name}.tmp")


def begin_draft(run: RunDir, name: str) -> Path:
    """An empty place for the hook to write to; returns its path.

    Raises:
        OutputError: the folder cannot be made.
    """
    path = draft_of(run, name)
    with explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    return path


def keep_draft(run: RunDir, name: str) -> str:
    """Give the rows that the hook has written their place; return the digest of the file.

    Raises:
        HookError: it has written none.
        OutputError: they cannot be kept.
    """
    draft, place = draft_of(run, name), run.made_rows_of(name)
    if not draft.is_file() or not draft.stat().st_size:
        what = "is empty" if draft.is_file() else "is not there"
        raise HookError(
            f"step {name}: sdpo.before_step came back without rows: {draft} {what}. Let it write one JSON object a "
            "line to the data_path that it is given, and run the same command with auto_resume_from_checkpoints: "
            "true, which calls it again."
        )
    with explaining_write_errors(place):
        sync_file(draft)
        draft.chmod(0o644)
        draft.replace(place)
        sync_directory(place.parent)
        return digests.of_file(place)


def kept_rows(run: RunDir, ledger: Ledger) -> tuple[str, ...]:
    """The names of the steps whose rows a hook has made, each checked against what the ledger vouches for.

    Raises:
        OutputError: a file is missing, or has been changed.
    """
    names = []
    for step in ledger.plan.steps:
        path = run.made_rows_of(step.name)
        digest = ledger.made_rows.get(run.key(path))
        if digest is None:
            continue
        problem = _problem(path, digest)
        if problem:
            raise OutputError(
                f"{path} does not hold the rows that sdpo.before_step has made for step {step.name}: {problem}. "
                "Restore it, or train into another output_dir."
            )
        names.append(step.name)
    return tuple(names)


def _problem(path: Path, digest: str) -> str | None:
    try:
        found = digests.of_file(path)
    except OSError as error:
        return f"it cannot be read ({error})"
    return None if found == digest else "it has been changed, its digest does not fit the ledger"
