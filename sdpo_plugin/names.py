"""Names that become paths, from config, plan, ledger or seal: none of them leads out of its directory."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What the host's commands put beside the final model: directories by name, files by the look of their suffix.
_RESERVED = {"additional_chat_templates", "merged", "quantized", "runs", "sdpo", "tokenizer"}
_FILE_NAME = re.compile(r".*\.([a-z]+|h5)", re.IGNORECASE)


def is_step_name(name: str) -> bool:
    """Whether ``name`` can be a directory of a step's own in the output directory, beside all that the host puts there.

    What ends in a dot and letters is a file's name: `model.safetensors`, and what a later host writes; `v1.5` is none.
    """
    return (
        _PLAIN_NAME.fullmatch(name) is not None
        and name.lower() not in _RESERVED
        and not name.lower().startswith("checkpoint-")
        and _FILE_NAME.fullmatch(name) is None
    )


def require_step_name(name: str) -> str:
    """The name, if it can be the directory of a step's model.

    Raises:
        ValueError: it is no plain file name, or is taken.
    """
    if is_step_name(name):
        return name
    raise ValueError(
        f"a step's name is the directory its model is written to, and {name!r} cannot be one: "
        "use letters, digits, '.', '_' and '-', beginning with a letter or digit; "
        f"'checkpoint-…', {sorted(_RESERVED)} and names that end like a file's ('.json', '.safetensors') are taken"
    )


def require_path_below(path: str) -> str:
    """The path, if it is relative and stays below the directory that it belongs to.

    Raises:
        ValueError: it is absolute, empty, goes up, or cannot be a path at all.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is no path below its directory")
    return path


StepName = Annotated[str, AfterValidator(require_step_name)]
PathBelow = Annotated[str, AfterValidator(require_path_below)]
