"""Sets that the host has prepared on disk: whether they are whole, and how many rows they were made of."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl.utils.data import shared
from axolotl.utils.data.lock import LOCK_FILE_NAME
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict
from filelock import FileLock

from sdpo_plugin.host.data.local_data import load_raw
from sdpo_plugin.host.data.small_sets import workers
from sdpo_plugin.pair_checks import NOT_LOOKED_AT, Found
from sdpo_plugin.run_dir.files import write_json

ROWS_FILE = "sdpo_rows.json"
LAST_FILE = "dataset_info.json"  # written by `datasets` when all else is


@dataclass(frozen=True)
class RawNote:
    """What is known of the rows of all entries before the host dropped any.

    Attributes:
        rows: their number.
        other_prompts: those whose answers are to different prompts.
    """

    rows: int
    other_prompts: Found


class Prepared:
    """The set that the host prepares of ``cfg.datasets``.

    Attributes:
        path: where the host keeps it.
    """

    def __init__(self, cfg: DictDefault, tokenizer_name: str) -> None:
        digest = shared.generate_dataset_hash_from_config(cfg, cfg.datasets, tokenizer_name)
        self.path = Path(shared.get_prepared_dataset_path(cfg, digest))
        self._note = self.path / ROWS_FILE
        self._is_made_anew = bool(cfg.is_preprocess)

    def clear_torn(self) -> None:
        """Take away what the host did not come to the end of: it would take it for a whole set.

        Raises:
            OSError: it cannot be removed.
        """
        if self._is_torn():
            with FileLock(self.path.parent / LOCK_FILE_NAME):  # the host's own: another process may be writing it
                if self._is_torn():
                    shutil.rmtree(self.path)

    def _is_torn(self) -> bool:
        try:
            if not any(self.path.iterdir()):
                return False
        except (FileNotFoundError, NotADirectoryError):  # there is none, or another rank is taking it away
            return False
        try:
            json.loads((self.path / LAST_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return True
        return False

    def raw_note(self) -> RawNote | None:
        """What was noted of the rows of the sources when they were read; None: nothing was."""
        if self._is_made_anew or not self._note.exists():
            return None
        noted = json.loads(self._note.read_bytes())
        rows, found = int(noted["rows"]), noted.get("other_prompts")  # an earlier release has noted the first alone
        return RawNote(rows, NOT_LOOKED_AT if found is None else Found(found[0], tuple(found[1]), rows))

    def note(self, raw: RawNote) -> None:
        """Keep it beside the prepared set."""
        if self.path.exists():
            found = raw.other_prompts
            write_json(self._note, {"rows": raw.rows, "other_prompts": [found.num_rows, list(found.rows)]})


class RawReader:
    """Reads the entries for the host, and keeps their rows as they are before it makes anything of them.

    Args:
        cfg: the config that the host reads them by; it maps few rows without worker processes.

    Attributes:
        parts: rows of each entry that was read; none where the host has the set prepared.
    """

    def __init__(self, cfg: DictDefault) -> None:
        self._cfg, self._asked = cfg, cfg.dataset_num_proc
        self.parts: list[Dataset] = []

    def load(self, entry: DictDefault, use_auth_token: Any, streaming: bool = False) -> Dataset | DatasetDict:
        """In place of the host's ``load_dataset_with_config``."""
        loaded = load_raw(entry, use_auth_token, streaming)
        self.parts.append(_training_rows(loaded))
        # It reads every entry before it maps one.
        self._cfg.dataset_num_proc = workers(self._asked, sum(map(len, self.parts)))
        return loaded


def raw_parts(cfg: DictDefault) -> Iterator[Dataset]:
    """The rows of each entry, read once more."""
    for entry in shared.datasets_with_name_generator(cfg.datasets):
        yield _training_rows(load_raw(entry, cfg.hf_use_auth_token))


def _training_rows(loaded: Dataset | DatasetDict) -> Dataset:
    return loaded["train"] if isinstance(loaded, DatasetDict) else loaded
