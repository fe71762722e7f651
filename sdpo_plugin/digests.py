"""Digests: SHA-256 of what is small and identifies, XXH3 of 128 bits of what is large. Neither defends against forgery.

XXH3 is as fast as a disk can be read; SHA-256 is not.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 22
SAMPLES, SAMPLE_BYTES = 16, 1 << 16


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def of_json(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def of_arrays(arrays: Iterable[NDArray[Any]], about: str = "") -> str:
    """SHA-256 over the bytes of arrays, little-endian, after the text that says what they are."""
    digest = hashlib.sha256(about.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def of_chunks(chunks: Iterable[bytes | memoryview]) -> str:
    """XXH3 over bytes that come in parts; how they are divided does not count."""
    digest = xxhash.xxh3_128()
    for chunk in chunks:
        digest.update(chunk)
    return str(digest.hexdigest())


def of_file(path: Path) -> str:
    """XXH3 over the content of a file.

    Raises:
        OSError: it cannot be read.
    """
    return of_chunks(_blocks(path))


def of_files(paths: Iterable[Path]) -> str:
    """XXH3 over name, size and content of files, in this order.

    Raises:
        OSError: a file cannot be read.
    """
    return of_chunks(chain.from_iterable(chain((_heading(path),), _blocks(path)) for path in paths))


def of_samples(paths: Iterable[Path]) -> str:
    """XXH3 over name, size and 16 blocks of 64 KiB of each file, evenly spaced; a file of up to 1 MiB counts whole.

    Tells another model apart without reading tens of gigabytes: training moves every block. It does not find a
    single flipped bit.

    Raises:
        OSError: a file cannot be read.
    """
    ordered = sorted(paths, key=lambda path: path.name)
    return of_chunks(chain.from_iterable(chain((_heading(path),), _samples(path)) for path in ordered))


def _heading(path: Path) -> bytes | memoryview:
    return f"{path.name}\n{path.stat().st_size}\n".encode()


def _blocks(path: Path) -> Iterator[bytes | memoryview]:
    """The content of a file; each block is overwritten by the next one."""
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            yield view[:count]


def _samples(path: Path) -> Iterator[bytes | memoryview]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            yield file.read()
            return
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)
