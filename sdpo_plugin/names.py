"""Names that become paths, from config, plan, ledger or seal: none of them leads out of its directory."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED = {"sdpo", "runs", "merged"}


def require_step_name(name: str) -> str:
    """The name, if it can be the directory of a step's model.

    Raises:
        ValueError: it is no plain file name, or is taken.
    """
    if _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED and not name.lower().startswith("checkpoint-"):
        return name
    raise ValueError(
        f"a step's name is the directory its model is written to, and {name!r} cannot be one: "
        "use letters, digits, '.', '_' and '-', beginning with a letter or digit; "
        f"'checkpoint-…' and {sorted(_RESERVED)} are taken"
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
