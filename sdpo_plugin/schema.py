"""Types of what is written as JSON and read back: strictly the types that are declared, and no key besides."""

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""The ``__pydantic_config__`` of a dataclass that is read back."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
