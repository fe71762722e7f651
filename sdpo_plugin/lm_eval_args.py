"""`sdpo.lm_eval`: which benchmarks of lm-eval the models of a run are evaluated on, and how."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


def _number_or_share(limit: float) -> float:
    if limit >= 1 and limit != int(limit):
        raise ValueError(f"{limit!r} is no number of questions; set a whole number, or a share below 1")
    return limit


Limit = Annotated[float, Field(gt=0), AfterValidator(_number_or_share)]


class TaskArgs(BaseModel):
    """One entry of `sdpo.lm_eval.tasks`: a name, or a block with settings of its own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    task: Annotated[str, Field(min_length=1)] = Field(description="Name of a task, a group or a tag of lm-eval.")
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Worked examples before each question. Default: that of sdpo.lm_eval."
    )
    limit: Limit | None = Field(
        None, description="Questions of each task, or, below 1, their share. Default: that of sdpo.lm_eval."
    )


class LMEvalArgs(BaseModel):
    """`sdpo.lm_eval`: every M_t is evaluated by lm-eval while it is in memory."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    tasks: Annotated[list[TaskArgs], Field(min_length=1)] = Field(
        description="Names of tasks, groups or tags of lm-eval, each by itself or as {task: …, num_fewshot: …, "
        "limit: …}."
    )
    limit: Limit | None = Field(
        None, description="Questions of each task, from the first on, or, below 1, their share. Default: all."
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Worked examples before each question. Default: that of the task."
    )
    include_path: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Directory of your own task files, searched with all that is below it. Default: none."
    )
    apply_chat_template: bool = Field(
        False, description="Ask in the chat template of the run's tokenizer, each worked example as a turn."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        8, description="Sequences in a batch on each rank; logits are computed for all of their tokens."
    )
    steps: Literal["all", "last"] = Field("all", description="all: M_0 and every M_t. last: M_0 and M_T.")

    @field_validator("tasks", mode="before")
    @classmethod
    def _a_name_is_a_block(cls, tasks: Any) -> Any:
        if not isinstance(tasks, list):
            return tasks
        return [{"task": entry} if isinstance(entry, str) else entry for entry in tasks]

    @field_validator("tasks")
    @classmethod
    def _every_task_once(cls, tasks: list[TaskArgs]) -> list[TaskArgs]:
        names = [entry.task for entry in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is listed {names.count(name)} times; list each task once")
        return tasks

    @property
    def entries(self) -> list[TaskArgs]:
        """Each entry of `tasks` with the settings that hold for it."""
        return [
            TaskArgs(
                task=entry.task,
                num_fewshot=self.num_fewshot if entry.num_fewshot is None else entry.num_fewshot,
                limit=self.limit if entry.limit is None else entry.limit,
            )
            for entry in self.tasks
        ]
