"""What local data hold, as a digest: a file edited in place is other data, whatever its name, size and time say."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

BLOCK_BYTES = 1 << 22


def local_files(path: str, data_files: Sequence[str] = ()) -> list[Path]:
    """The files that a data set entry is read from; none where ``path`` is not on this machine.

    Args:
        path: a file, or a directory with all that is in it.
        data_files: names and patterns in place of what is in a directory; absolute, or from the working directory.
    """
    root = Path(path)
    if not path or not root.exists():
        return []
    if root.is_file():
        return [root]
    if data_files:
        names = {name for pattern in data_files for name in (pattern, *glob.glob(pattern, recursive=True))}  # noqa: PTH207
    else:
        inside = glob.glob("**", root_dir=root, recursive=True)  # noqa: PTH207 - it follows links
        names = {str(root / name) for name in inside if not _is_cache(Path(name).name)}
    return sorted(file for file in map(Path, names) if file.is_file())


def content_digest(files: Iterable[Path]) -> str:
    """128-bit XXH3 over the content of the files, in order. Not cryptographic; as fast as a disk can be read.

    Raises:
        OSError: a file cannot be read.
    """
    digest = xxhash.xxh3_128()
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    for path in files:
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(view[:count])
    return digest.hexdigest()


def _is_cache(name: str) -> bool:
    """`datasets` leaves what it has mapped and filtered beside a set that was saved with `save_to_disk`."""
    return name.startswith("cache-") and name.endswith(".arrow")
