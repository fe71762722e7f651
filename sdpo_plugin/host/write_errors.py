"""Writing by the host that fails: full disks, quotas, files that grow too large."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sdpo_plugin.run_dir.files import cannot_write


@contextmanager
def explaining_host_errors(directory: Path) -> Iterator[None]:
    """Say where the host could not write, and that nothing before it is lost.

    Raises:
        OutputError: in place of its error: the disk is full, a quota is used up, a file grew too large.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_torchs_writer(error):
            raise
        raise cannot_write(directory, error) from error


def _is_torchs_writer(error: RuntimeError) -> bool:
    """`torch.save` says in many ways that it cannot write, and each is a plain RuntimeError; where it was is one."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).parts[-2:] == ("torch", "serialization.py")
