"""The `sdpo:` block of the config, validated by Pydantic with unknown keys forbidden."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdpo_plugin.lm_eval_args import LMEvalArgs
from sdpo_plugin.names import require_step_name

OVERRIDES = (
    "learning_rate",
    "num_epochs",
    "max_steps",
    "rl_beta",
    "dpo_loss_type",
    "dpo_label_smoothing",
    "lr_scheduler",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "val_set_size",
    "test_datasets",
)
"""Host keys that a step may set for itself; every other host key holds for all steps."""

FRACTION_SLACK = 1e-3
"""The distance from 1 that a sum of fractions may have, so that three thirds can be written as 0.333 each."""

MAX_STEPS = 1000
"""More steps than anyone trains; a slip of the keyboard must not ask for more shares than there is memory for."""

MADE_BY_HOOK = "before_step"
"""In place of the path of rows that `sdpo.before_step` makes."""

_HOOK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MODEL_NAME = re.compile(r"M_[0-9]+")  # as `plan.model_name` writes it


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
        None, description="Optimizer steps of this step; wins over num_epochs. Default: the config's."
    )
    rl_beta: Annotated[float, Field(gt=0)] | None = Field(
        None, description="β of the DPO loss (arXiv 2305.18290, Eq. 7). Default: the config's, else the host's 0.1."
    )
    dpo_loss_type: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Loss names as the host takes them, e.g. [sigmoid]. Default: the config's."
    )
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        None, description="Assumed share of flipped labels, 0 to 0.5. Default: the config's."
    )
    lr_scheduler: str | None = Field(None, description="Name of the host's schedule. Default: the config's.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Share of this step's optimizer steps that warm up. Default: the config's."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Optimizer steps that warm up; wins over warmup_ratio. Default: the config's."
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


class PartitionArgs(BaseModel):
    """`sdpo.partition`: how the pool of all `datasets:` entries becomes steps (arXiv 2403.19270 v2, §3.2)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    strategy: Literal["natural", "easy_to_hard", "random", "stratified"] = Field(
        description="natural: an entry is a step, in order. easy_to_hard: ordered by the base model's own log-probs. "
        "random: rows drawn whatever their source. stratified: every step holds the same share of every source."
    )
    unit: Literal["source", "row"] | None = Field(
        None,
        description="easy_to_hard only. source: entries in descending order of the base model's reference-free "
        "accuracy, one step each. row: all rows ranked by γ under the base model and cut. Default: source.",
    )
    score: Literal["log_ratio", "log_ratio_per_token"] | None = Field(
        None,
        description="easy_to_hard only. log_ratio: γ summed over tokens, in nats, as in the paper. "
        "log_ratio_per_token: each log-prob divided by its tokens first. Default: log_ratio.",
    )
    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Number of steps of equal size; for random, stratified and easy_to_hard by row."
    )
    fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] | None = Field(
        None, description="Share of the pool of each step, instead of num_steps; they sum to 1."
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(None, description="Seed of random and stratified. Default: 42.")

    @model_validator(mode="after")
    def _keys_fit_the_strategy(self) -> "PartitionArgs":
        orders = self.strategy == "easy_to_hard"
        draws = self.strategy in ("random", "stratified")
        by_source = orders and self.unit != "row"
        what = f"strategy: {self.strategy}" + (" by source" if by_source else "")
        for key, belongs in (("unit", orders), ("score", orders), ("seed", draws)):
            if getattr(self, key) is not None and not belongs:
                owner = "easy_to_hard" if key != "seed" else "random and stratified"
                raise ValueError(f"{key}: {getattr(self, key)!r} belongs to {owner}, not to {what}; remove {key}")
        cut = {key: getattr(self, key) for key in ("num_steps", "fractions") if getattr(self, key) is not None}
        if cut and (by_source or self.strategy == "natural"):
            key, value = next(iter(cut.items()))
            remedy = "set unit: row, or remove it" if orders else "remove it"
            raise ValueError(f"{key}: {value!r} has no use with {what}, where each source is a step; {remedy}")
        if len(cut) != 1 and (draws or (orders and not by_source)):
            both = " and ".join(f"{key}: {value!r}" for key, value in cut.items())
            seen = f"{both} are both set; keep one" if cut else "they are both missing; set one, e.g. num_steps: 2"
            raise ValueError(f"{what} needs num_steps or fractions: {seen}")
        return self

    @field_validator("fractions")
    @classmethod
    def _fractions_sum_to_one(cls, fractions: list[float] | None) -> list[float] | None:
        if fractions is not None and abs(sum(fractions) - 1) > FRACTION_SLACK:
            raise ValueError(f"{fractions} sum to {sum(fractions):.4g}, not to 1; set shares that do")
        return fractions

    def shares(self) -> list[float]:
        """Share of the pool of each step, summing to 1 exactly enough for ``partition.step_sizes``."""
        if self.fractions is not None:
            total = sum(self.fractions)
            return [fraction / total for fraction in self.fractions]
        assert self.num_steps is not None
        return [1 / self.num_steps] * self.num_steps


class DiagnosticsArgs(BaseModel):
    """`sdpo.diagnostics`: what is computed for the report alone."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    matrix: bool = Field(
        True, description="Log-probs of every D_j under every M_t, for the matrices of the report; extra passes."
    )
    max_rows: Annotated[int, Field(gt=0)] = Field(
        512, description="Rows of each D_j in these passes at most; the same ones under every model."
    )
    seed: Annotated[int, Field(ge=0)] = Field(42, description="Seed by which these rows are drawn.")


class SDPOConfig(BaseModel):
    """The `sdpo:` block. Empty, each entry of the host's `datasets:` is one step, in order."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    steps: Annotated[list[StepArgs], Field(min_length=1)] | None = Field(
        None, description="The steps, instead of the host's `datasets:`. Default: one step per entry of `datasets:`."
    )
    partition: PartitionArgs | None = Field(
        None, description="How the pool of all `datasets:` entries becomes steps, instead of `steps`."
    )
    reference: Annotated[str, Field(min_length=1)] = Field(
        "previous",
        description="Reference model of step t. previous: M_{t-1} (arXiv 2403.19270, §3.3). base: the base model. "
        "Else the path or hub id of a model with the same tokenizer (Table 1).",
    )
    policy_init: Literal["previous", "base"] = Field(
        "previous",
        description="Model that step t starts from. previous: M_{t-1}. base: the base model again, or the adapter as "
        "it was initialised (§3.5: a higher initial loss).",
    )
    packed: Literal["auto", True, False] = Field(
        "auto",
        description="Compute each pair as one row [prompt | chosen | rejected], without padding. auto: where that is "
        "exact. true: refuse where it is not. false: TRL's padded rows.",
    )
    export_steps: Literal["all", "last"] = Field(
        "all", description="all = keep every M_t as a loadable model directory; last = only the final model."
    )
    diagnostics: DiagnosticsArgs = Field(DiagnosticsArgs(), description="What is computed for the report alone.")
    lm_eval: LMEvalArgs | None = Field(
        None, description="Benchmarks of lm-eval that every M_t is evaluated on. Default: none."
    )
    before_step: str | None = Field(
        None,
        description="package.module:function of your own that rank 0 calls before each step; it may make the rows of "
        "steps with from_hook.",
    )
    after_step: str | None = Field(
        None, description="package.module:function of your own that rank 0 calls when M_t has been written."
    )

    @field_validator("before_step", "after_step")
    @classmethod
    def _hook_names_a_function(cls, hook: str | None) -> str | None:
        if hook is not None and not _HOOK.fullmatch(hook):
            raise ValueError(f"{hook!r} names no function; write package.module:function, e.g. my_hooks:make_pairs")
        return hook

    @field_validator("reference")
    @classmethod
    def _reference_is_no_model_of_the_run(cls, reference: str) -> str:
        if _MODEL_NAME.fullmatch(reference):
            raise ValueError(
                f"{reference!r} reads like the model of a step in plan and report; write './{reference}' for a "
                "directory of that name, or set previous, base, or the path or hub id of a model"
            )
        return reference

    @model_validator(mode="after")
    def _steps_or_partition(self) -> "SDPOConfig":
        if self.steps is not None and self.partition is not None:
            raise ValueError(
                f"sdpo.partition (strategy: {self.partition.strategy}) and sdpo.steps ({len(self.steps)} steps) are "
                "both set; keep sdpo.steps, or put all data under datasets: and keep sdpo.partition"
            )
        return self

    @model_validator(mode="after")
    def _hooks_can_make_the_rows(self) -> "SDPOConfig":
        made = [number for number, step in enumerate(self.steps or []) if step.from_hook is not None]
        if not made:
            return self
        if self.before_step is None:
            raise ValueError(
                f"sdpo.steps[{made[0]}].from_hook is set, and sdpo.before_step, which would make its rows, is not; "
                "set it to package.module:function, or give the step datasets"
            )
        if made[0] == 0:
            raise ValueError(
                "sdpo.steps[0].from_hook: the host builds its trainer with the rows of the first step, before any "
                "hook is called; give the first step datasets"
            )
        if self.reference != "previous":
            raise ValueError(
                f"sdpo.reference: {self.reference!r} and sdpo.steps[{made[0]}].from_hook exclude each other: the "
                "log-probs of such a reference are computed before step 1, when these rows are not made yet; "
                "set reference: previous"
            )
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "SDPOConfig":
        names = step_names(self.steps or [])
        for number, name in enumerate(names):
            # Compared without case: M_t would overwrite M_s on a file system that ignores it.
            earlier = [other.lower() for other in names[:number]]
            if name.lower() in earlier:
                first = earlier.index(name.lower())
                both = f"both named {name!r}" if names[first] == name else f"named {name!r} and {names[first]!r}"
                raise ValueError(
                    f"sdpo.steps[{number}] and sdpo.steps[{first}] are {both}; give each step a name of its own"
                )
        return self


class SDPOArgs(BaseModel):
    """The addition of the plugin to the host's config schema."""

    sdpo: SDPOConfig | None = Field(None, description="Stepwise DPO; see sdpo_plugin.args.SDPOConfig.")


def step_names(steps: Sequence[StepArgs]) -> list[str]:
    """The name of each step: the one written, else step-1, step-2, … by position."""
    return [step.name or f"step-{number}" for number, step in enumerate(steps, 1)]
