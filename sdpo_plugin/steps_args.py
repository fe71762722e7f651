"""`sdpo.steps`: the data of each step, and what it sets differently from the rest of the config."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdpo_plugin.names import require_step_name
from sdpo_plugin.refresh_args import RefreshArgs

OVERRIDES = (
    "learning_rate",
    "num_epochs",
    "max_steps",
    "rl_beta",
    "dpo_loss_type",
    "dpo_loss_weights",
    "dpo_label_smoothing",
    "dpo_ld_alpha",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "sequence_len",
    "lr_scheduler",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "val_set_size",
    "test_datasets",
)
"""Host keys that a step may set for itself; every other host key holds for all steps."""

MADE_BY_HOOK = "before_step"
"""In place of the path of rows that `sdpo.before_step` makes."""


class HookRows(BaseModel):
    """`from_hook` of a step: how the host reads the rows that `sdpo.before_step` makes."""

    model_config = ConfigDict(extra="forbid")

    type: str | dict[str, Any] = Field(description="The host's `type` of these rows, e.g. chat_template.default.")
    field_messages: str | None = Field(None, description="Column of the prompt's messages. Default: the host's.")
    field_chosen: str | None = Field(None, description="Column of the chosen answer. Default: the host's.")
    field_rejected: str | None = Field(None, description="Column of the rejected answer. Default: the host's.")


class StepArgs(BaseModel):
    """One step of `sdpo.steps`: its data and what it sets differently from the rest of the config."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str | None = Field(None, description="Directory name of the step's model. Default: step-1, step-2, …")
    datasets: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        None,
        description="Host dataset entries; together, merged as the host merges, they are D_t. "
        "Default: required without from_hook.",
    )
    from_hook: HookRows | None = Field(
        None, description="Instead of `datasets`: how rows are read that `sdpo.before_step` makes out of M_{t-1}."
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate of this step. Default: the config's."
    )
    num_epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Passes over D_t. Default: the config's."
    )
    max_steps: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Updates of this step; wins over num_epochs. Default: the config's."
    )
    rl_beta: Annotated[float, Field(gt=0)] | None = Field(
        None, description="β of the DPO loss (arXiv 2305.18290, Eq. 7). Default: the config's, else the host's 0.1."
    )
    dpo_loss_type: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Loss names as the host takes them, e.g. [sigmoid]. Default: the config's."
    )
    dpo_loss_weights: Annotated[list[float], Field(min_length=1)] | None = Field(
        None, description="Weight of each loss of dpo_loss_type. Default: the config's, else 1 each."
    )
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        None, description="Assumed share of flipped labels, 0 to 0.5. Default: the config's."
    )
    dpo_ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Weight of the tokens by which an answer is longer than the other (LD-DPO, arXiv 2409.06411), "
        "where the host has the key. Default: the config's, else 1.",
    )
    micro_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Pairs of this step in a batch on each rank. Default: the config's."
    )
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Batches that make an optimizer step. Default: the config's."
    )
    sequence_len: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Tokens of a prompt and an answer; longer rows of D_t are dropped. Default: the config's."
    )
    lr_scheduler: str | None = Field(None, description="Name of the host's schedule. Default: the config's.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Share of this step's updates that warm up. Default: the config's."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Updates that warm up; wins over warmup_ratio. Default: the config's."
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of the optimizer. Default: the config's."
    )
    val_set_size: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Share of D_t that is held out, 0 to 1. Default: the config's."
    )
    test_datasets: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="Host dataset entries held out for this step. Default: the config's."
    )

    reference_refresh: RefreshArgs | None = Field(
        None, description="When the policy makes the reference of this step again. Default: that of the block."
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_plain_file_name(cls, name: str | None) -> str | None:
        return None if name is None else require_step_name(name)

    @model_validator(mode="after")
    def _rows_come_from_one_place(self) -> "StepArgs":
        if self.datasets is None and self.from_hook is None:
            raise ValueError(
                "datasets is missing; set it to a list of host dataset entries, or set from_hook where "
                "sdpo.before_step makes the rows"
            )
        if self.datasets is not None and self.from_hook is not None:
            raise ValueError(
                f"datasets ({len(self.datasets)} entries) and from_hook (type: {self.from_hook.type!r}) are both set; "
                "keep from_hook where sdpo.before_step makes the rows, and datasets where they are there already"
            )
        if self.from_hook is not None and self.val_set_size:
            raise ValueError(
                f"val_set_size: {self.val_set_size!r} and from_hook exclude each other: M_0 is evaluated on every "
                "held-out set, before these rows are made; set test_datasets instead"
            )
        return self

    @model_validator(mode="after")
    def _one_kind_of_warmup_and_of_held_out_rows(self) -> "StepArgs":
        for one, other in (("warmup_ratio", "warmup_steps"), ("val_set_size", "test_datasets")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(
                    f"{one}: {getattr(self, one)!r} and {other}: {getattr(self, other)!r} exclude each other; keep one"
                )
        return self

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The host dataset entries of D_t; where a hook makes the rows, its key stands in place of a path."""
        if self.from_hook is None:
            return self.datasets or []
        return [{"path": MADE_BY_HOOK, **self.from_hook.model_dump(exclude_none=True)}]

    def overrides(self) -> dict[str, Any]:
        """The host keys that this step sets, with their values."""
        return {key: getattr(self, key) for key in OVERRIDES if getattr(self, key) is not None}


def step_names(steps: Sequence[StepArgs]) -> list[str]:
    """The name of each step: the one written, else step-1, step-2, … by position."""
    return [step.name or f"step-{number}" for number, step in enumerate(steps, 1)]
