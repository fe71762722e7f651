"""The `sdpo:` block of the config, validated by Pydantic with unknown keys forbidden."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdpo_plugin.lm_eval_args import LMEvalArgs
from sdpo_plugin.partition_args import PartitionArgs
from sdpo_plugin.refresh_args import RefreshArgs
from sdpo_plugin.steps_args import StepArgs, step_names

_HOOK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MODEL_NAME = re.compile(r"M_[0-9]+")  # as `plan.model_name` writes it


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
    reference_refresh: RefreshArgs | None = Field(
        None,
        description="When the policy makes the reference again within a step. Default: not before the step is over.",
    )
    packed: Literal["auto", True, False] = Field(
        "auto",
        description="Compute each pair as one row [prompt | chosen | rejected], without padding. auto: where that is "
        "exact. true: refuse where it is not. false: TRL's padded rows.",
    )
    check_data: Literal["error", "warn", False] = Field(
        "error",
        description="What becomes of pairs that make training wrong, looked for before the first step. error: refused. "
        "warn: told in the log. false: not looked for.",
    )
    export_steps: Literal["all", "last"] = Field(
        "all", description="all = keep every M_t as a loadable model directory; last = only the final model."
    )
    reference_cache: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Directory in which runs share their tables of log-probs: what one has computed of the same rows "
        "under the same model, another one reads. Default: none.",
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
    def _reference_may_move(self) -> "SDPOConfig":
        keys = ["sdpo.reference_refresh"] if self.reference_refresh else []
        steps = enumerate(self.steps or [])
        keys += [f"sdpo.steps[{number}].reference_refresh" for number, step in steps if step.reference_refresh]
        if keys and self.reference != "previous":
            raise ValueError(
                f"sdpo.reference: {self.reference!r} and {keys[0]} exclude each other: after a refresh the reference "
                "would be the policy, and no longer that model; set reference: previous, or remove reference_refresh"
            )
        return self

    def refresh_of(self, index: int) -> RefreshArgs | None:
        """The `reference_refresh` of step ``index`` (from 1): its own, else that of the block."""
        own = self.steps[index - 1].reference_refresh if self.steps else None
        return own or self.reference_refresh

    @model_validator(mode="after")
    def _ranking_is_the_reference_pass(self) -> "SDPOConfig":
        if self.partition is not None and self.partition.rescore and self.reference != "previous":
            raise ValueError(
                f"sdpo.reference: {self.reference!r} and sdpo.partition.rescore: True exclude each other: the "
                "log-probs of such a reference are computed before step 1, when it is not known which rows a step will "
                "have; set reference: previous"
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
