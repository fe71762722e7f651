"""Local data by what they hold: the host and `datasets` know a file by its name and time, and serve an edited one from
their caches."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import datasets
from axolotl.utils.data import shared
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict

from sdpo_plugin import digests
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.engines.ranks import on_rank_0
from sdpo_plugin.local_files import local_files

CONTENT = "sdpo_content"  # key of an entry: the digest of its files
LENGTH = 16


def address(entries: Sequence[DictDefault]) -> list[DictDefault]:
    """The entries as the host is given them: those of local data with the digest of what they hold.

    The digest goes into `revision`, too: the host's name for a prepared set covers it, and only a set on a hub is
    loaded by it. Rank 0 reads the files, each once.

    Raises:
        DataError: a file cannot be read.
    """
    digests = on_rank_0(partial(_digests, entries))
    return [
        entry if digest is None else DictDefault({**entry, CONTENT: digest, "revision": _revision(entry, digest)})
        for entry, digest in zip(entries, digests, strict=True)
    ]


def _revision(entry: DictDefault, digest: str) -> str:
    return digest if entry.revision is None else f"{entry.revision} {digest}"


def _digests(entries: Sequence[DictDefault]) -> list[str | None]:
    known: dict[tuple[str, ...], str] = {}
    found: list[str | None] = []
    for entry in entries:
        if not isinstance(entry.path, str):  # the host has more to say about it
            found.append(None)
            continue
        names = entry.data_files or []
        try:
            files = local_files(entry.path, [names] if isinstance(names, str) else list(names))
            key = tuple(map(str, files))
            if files and key not in known:
                known[key] = digests.of_files(files)[:LENGTH]
        except OSError as error:
            raise DataError(f"{entry.path} cannot be read: {error}; check its permissions.") from error
        found.append(known.get(key))
    return found


def load_raw(entry: DictDefault, use_auth_token: Any, streaming: bool = False) -> Dataset | DatasetDict:
    """The rows of an entry as the host loads them; local ones through a cache of `datasets` that is named by content.

    The name of a set in that cache covers path and time of a file, and so does the fingerprint by which everything
    derived from it is cached.
    """
    if not entry.get(CONTENT):
        return shared.load_dataset_with_config(entry, use_auth_token, streaming=streaming)
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = f"{usual}/by-content/{entry[CONTENT]}"
    try:
        loaded = shared.load_dataset_with_config(entry, use_auth_token, streaming=streaming)
    finally:
        datasets.config.HF_DATASETS_CACHE = usual
    for rows in loaded.values() if isinstance(loaded, DatasetDict) else [loaded]:
        rows._fingerprint = digests.of_chunks([f"{rows._fingerprint} {entry[CONTENT]}".encode()])[:LENGTH]
    return loaded
