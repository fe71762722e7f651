"""The tasks of lm-eval that a config names: found before a run begins, and run on a model."""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host import compat, relied_on
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.evaluation.attempt import attempt
from sdpo_plugin.lm_eval_args import LMEvalArgs, TaskArgs
from sdpo_plugin.run_dir.evaluations import TaskResult, Value

# Draws for the standard error of what is no mean (a mean has a formula); the harness's own 100,000 take an hour.
DRAWS = 1000
NO_FILTER = "none"


def require_tasks(args: LMEvalArgs | None, *, reads_data: bool) -> None:
    """Refuse tasks that do not exist, or whose data cannot be read. All ranks call it, and rank 0 looks.

    Args:
        args: `sdpo.lm_eval`.
        reads_data: also load them with their data, which the first evaluation then has in its cache.

    Raises:
        ConfigError: a line for each.
        UnsupportedHostError: lm-eval has not what is relied on.
    """
    if args is not None:
        ranks.on_rank_0(partial(_look_for, args, reads_data=reads_data))


def _look_for(args: LMEvalArgs, *, reads_data: bool) -> None:
    compat.require_all(relied_on.of_lm_eval())
    path = args.include_path
    if path is not None and not Path(path).is_dir():
        raise ConfigError(
            f"sdpo.lm_eval.include_path: {path!r} is no directory; set the directory that holds your task files."
        )
    names = [entry.task for entry in args.entries]
    lines = list(_unknown(names, task_manager(path).all_tasks))
    if not lines and reads_data:
        lines = [line for name in names for line in _unreadable(name, path)]
    if lines:
        raise ConfigError("\n".join(lines))


def require_chat_template(args: LMEvalArgs | None, tokenizer: Any) -> None:
    """Refuse to ask in a chat template that the tokenizer does not have.

    Raises:
        ConfigError: it has none.
    """
    if args is not None and args.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError(
            f"sdpo.lm_eval.apply_chat_template: true, but the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; set apply_chat_template: false, or use a tokenizer that has one."
        )


@lru_cache(maxsize=1)
def task_manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks, made once a process: it reads thousands of files.

    Raises:
        ConfigError: a task file cannot be read.
    """
    from lm_eval.tasks import TaskManager

    manager, error = attempt(lambda: TaskManager(include_path=include_path))
    if manager is None:
        raise ConfigError(
            f"sdpo.lm_eval.include_path: {include_path!r} holds a file that is no task of lm-eval ({error}); "
            "correct it, or move it elsewhere."
        )
    return manager


def _unknown(names: list[str], known: list[str]) -> Iterator[str]:
    for name in names:
        if name in known:
            continue
        if name.endswith((".yaml", ".yml")):
            hint = "name the task that it describes, and set include_path to its directory"
        else:
            close = get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "lm-eval ls tasks lists them"
        yield f"sdpo.lm_eval.tasks: {name!r} is no task, group or tag of lm-eval; {hint}."


def _unreadable(name: str, include_path: str | None) -> Iterator[str]:
    from lm_eval.tasks import get_task_dict

    tasks, error = attempt(lambda: get_task_dict([name], task_manager(include_path)))
    if tasks is None:
        yield (
            f"sdpo.lm_eval.tasks: {name!r} cannot be loaded: {error}. Put its data where they can be read, or take it "
            "out of tasks."
        )
        return
    for task_name, task in _leaves(tasks):
        runs_code, sees_images = (getattr(task, flag, False) for flag in ("UNSAFE_CODE", "MULTIMODAL"))
        if runs_code:
            yield f"sdpo.lm_eval.tasks: {task_name!r} runs code that the model has written; take it out of tasks."
        elif sees_images:
            yield f"sdpo.lm_eval.tasks: {task_name!r} asks about images; take it out of tasks."


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield name, task


def run_task(lm: Any, args: LMEvalArgs, entry: TaskArgs) -> dict[str, TaskResult]:
    """The results of one entry, by task, and of the group where it is one. Only rank 0 runs the harness."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=lm,
        tasks=[entry.task],
        task_manager=task_manager(args.include_path),
        num_fewshot=entry.num_fewshot,
        limit=entry.limit,
        apply_chat_template=args.apply_chat_template,
        bootstrap_iters=DRAWS,
        log_samples=False,
    )
    return {task: _result(task, values, found) for task, values in found["results"].items()}


def _result(task: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> TaskResult:
    """Keys are "metric,filter" and "metric_stderr,filter"; others, such as an alias, are no metrics."""
    higher = found["higher_is_better"].get(task, {})
    metrics = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            name = metric if chosen == NO_FILTER else key
            stderr = _finite(values.get(f"{metric}_stderr,{chosen}"))
            metrics[name] = Value(_finite(value), stderr, higher.get(metric))
    asked = found["n-samples"].get(task, {}).get("effective")
    return TaskResult(metrics, None if asked is None else int(asked), found["n-shot"].get(task))


def _finite(value: Any) -> float | None:
    """A number of Python's or numpy's; the harness writes "N/A" where it has none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
