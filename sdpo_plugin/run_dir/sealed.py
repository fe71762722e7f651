"""Directories of models and checkpoints, sealed: a list of their files with size and digest, written last.

A directory without a seal was being written when its run died; one whose files do not fit its seal has been damaged;
one whose seal names another run, step or reference is foreign. None of them is ever used.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugin import digests
from sdpo_plugin.names import PathBelow
from sdpo_plugin.run_dir.files import require_no_link, sync_directory
from sdpo_plugin.run_dir.stored import read_stored, write_stored
from sdpo_plugin.schema import STRICT, Count

SCHEMA_VERSION = 1
SEAL = "sdpo_seal.json"
# What makes a directory loadable as a model or as an adapter; the last file to appear, the first to go.
MARKERS = ("config.json", "adapter_config.json")
CARD = "README.md"  # for people, who may edit it: no seal holds it


Files = dict[PathBelow, tuple[Count, str]]  # bytes and XXH3 digest of 128 bits by path below the directory


@dataclass(frozen=True)
class Contents:
    """The content of a seal.

    Attributes:
        about: whose it is, e.g. run, step, reference.
        facts: what its reader needs to know besides.
        files: what is sealed.
    """

    __pydantic_config__ = STRICT

    about: dict[str, str]
    facts: dict[str, Any]
    files: Files


@dataclass(frozen=True)
class Seal(Contents):
    """A seal that was read, with the SHA-256 of its content."""

    digest: str


def seal(
    directory: Path,
    about: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
    only: Iterable[Path] | None = None,
    known: Files | None = None,
) -> str:
    """Put every file of ``directory`` on disk, then the seal that vouches for them; return the seal's digest.

    The card of a model is left out: a user may edit it and resume.

    Args:
        directory: holds what is sealed.
        about: whose it is.
        facts: what its reader needs to know besides.
        only: the files that are sealed, where not all of them are.
        known: files that ``written`` has put on disk already, by this process or another one.

    Raises:
        OSError: a file cannot be read, synced or written.
    """
    names = names_in(directory, only)
    known = known or {}
    files = {name: known[name] for name in names if name in known}
    files |= written(directory, [name for name in names if name not in known])
    for folder in {(directory / name).parent for name in names} | {directory, directory.parent}:
        sync_directory(folder)
    ordered = {name: files[name] for name in names}
    return write_stored(directory / SEAL, Contents(dict(about), dict(facts or {}), ordered), SCHEMA_VERSION)


def names_in(directory: Path, only: Iterable[Path] | None = None) -> list[str]:
    """Paths below ``directory`` of the files that a seal would list, in order."""
    found = directory.rglob("*") if only is None else only
    paths = sorted(path for path in found if path.is_file() and path.name != SEAL and path != directory / CARD)
    return [str(path.relative_to(directory)) for path in paths]


def written(directory: Path, names: Iterable[str]) -> Files:
    """Put files on disk, and digest them.

    Raises:
        OSError: a file cannot be read or synced.
    """
    return {name: _sync(directory / name) for name in names}


def read_seal(directory: Path) -> Seal:
    """The seal of a directory; its files are not looked at.

    Raises:
        ValueError: there is none, or it is torn or changed; the message says which.
    """
    try:
        found, digest = read_stored(directory / SEAL, Contents, SCHEMA_VERSION)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError("it has no seal, so it was never finished") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"its seal is damaged ({error})") from error
    return Seal(found.about, found.facts, found.files, digest)


def flaw(directory: Path, about: Mapping[str, str], digest: str | None = None, *, deep: bool = True) -> str | None:
    """Why a sealed directory must not be used; None where it is whole and of this run.

    Args:
        directory: sealed by ``seal``; other files in it do not count.
        about: what its seal has to say.
        digest: of the seal, where a ledger vouches for this very one.
        deep: read the files; otherwise their sizes have to do.
    """
    try:
        found = read_seal(directory)
    except ValueError as error:
        return str(error)
    for key, value in about.items():
        if found.about.get(key) != value:
            return f"it belongs to another {key} ({found.about.get(key)!r} instead of {value!r})"
    if digest is not None and found.digest != digest:
        return "it is not the one that the ledger vouches for"
    for name, (size, content) in found.files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if deep and digests.of_file(path) != content:
            return f"{name} has been changed: its digest does not fit the seal"
    return None


def publish(staging: Path, target: Path) -> None:
    """Move a sealed directory's files into ``target``, where others may stand; a model appears there whole.

    The file that makes it loadable comes last, so that no reader meets half a model.

    Raises:
        OSError: a file cannot be moved.
        OutputError: ``target`` is a symbolic link.
    """
    require_no_link(target)
    remove(target)
    target.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in staging.iterdir()]
    for name in sorted(names, key=lambda name: (name in MARKERS, name != SEAL, name)):
        (staging / name).replace(target / name)
    sync_directory(target)
    sync_directory(target.parent)
    staging.rmdir()


def is_gone(directory: Path) -> bool:
    """Whether nothing is left of a model: no seal, and nothing that makes it loadable."""
    return not any((directory / name).exists() for name in (SEAL, *MARKERS))


def remove(directory: Path) -> None:
    """Remove the files that the seal of ``directory`` lists, seal, card, and the directory if nothing else is in it.

    What a symbolic link leads to stays: it is not this run's to remove. A link among the files goes itself.
    """
    if directory.is_symlink():
        return
    try:
        names = list(read_seal(directory).files)
    except ValueError:
        return
    below = [name for name in names if not _leads_away(directory, name)]
    for name in sorted(below, key=lambda name: name not in MARKERS):
        if not (directory / name).is_dir():
            (directory / name).unlink(missing_ok=True)
    for folder in sorted({(directory / name).parent for name in below} - {directory}, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    (directory / CARD).unlink(missing_ok=True)
    (directory / SEAL).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def _leads_away(directory: Path, name: str) -> bool:
    """Whether a folder on the way to a file is a symbolic link."""
    folders = [directory.joinpath(folder) for folder in Path(name).parents if folder != Path()]
    return any(folder.is_symlink() for folder in folders)


def _sync(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, digests.of_file(path)
