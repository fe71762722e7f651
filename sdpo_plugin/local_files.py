"""The files that local data are read from."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path


def local_files(path: str, data_files: Sequence[str] = ()) -> list[Path]:
    """The files that a data set entry is read from; none where ``path`` is not on this machine.

    Args:
        path: a file, or a directory with all that is in it.
        data_files: names and patterns in place of what is in a directory; absolute, or from the working directory.
    """
    root = Path(path)
    if not path or not os.path.exists(path):  # noqa: PTH110 - False for a name that is too long, where Path raises
        return []
    if root.is_file():
        return [root]
    if data_files:
        names = {name for pattern in data_files for name in (pattern, *glob.glob(pattern, recursive=True))}  # noqa: PTH207
    else:
        inside = glob.glob("**", root_dir=root, recursive=True)  # noqa: PTH207 - it follows links
        names = {str(root / name) for name in inside if not _is_cache(Path(name).name)}
    return sorted(file for file in map(Path, names) if os.path.isfile(file))  # noqa: PTH113 - likewise


def _is_cache(name: str) -> bool:
    """`datasets` leaves what it has mapped and filtered beside a set that was saved with `save_to_disk`."""
    return name.startswith("cache-") and name.endswith(".arrow")
