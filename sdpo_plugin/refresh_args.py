"""`sdpo.reference_refresh`: a reference that moves within a step."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RefreshArgs(BaseModel):
    """When the policy makes the reference of the rows to come again; exactly one key."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Updates from one refresh to the next (hard update of TR-DPO, arXiv 2404.09656)."
    )
    kl_above: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Nats an answer: the reference is refreshed where the mean of ½ (log π − log π_ref)² over the last "
        "training batches, 10 updates at most, is above (arXiv 2504.07856).",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "RefreshArgs":
        if (self.every is None) == (self.kl_above is None):
            both = f"every: {self.every} and kl_above: {self.kl_above} are both set"
            seen = "neither every nor kl_above is set" if self.every is None else both
            raise ValueError(f"{seen}; set exactly one: every: N (updates) or kl_above: x (nats)")
        return self
