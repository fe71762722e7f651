"""The user's own code around a step: `sdpo.before_step` and `sdpo.after_step`, each package.module:function."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugin.errors import ConfigError, HookError, SDPOError
from sdpo_plugin.plan import Plan, StepPlan
from sdpo_plugin.run_dir.ledger import StepRecord


@dataclass(frozen=True)
class StepContext:
    """The one argument of a hook.

    Attributes:
        plan: of the whole run.
        step: the step that begins, or has ended; its ``index`` counts from 1.
        record: what has been done of it: losses, updates, seconds.
        model_dir: directory of the model as it stands, M_{t-1} before step t and M_t after it; for M_0 what
            `base_model` says, a path or hub id, or the adapter as it was initialised.
        output_dir: of the run.
        report: the content of `sdpo/report.json` as far as the run has come.
        seed: of the run.
        data_path: where ``before_step`` writes the rows of a step with `from_hook`, one JSON object a line; None where
            there is nothing to write.
    """

    plan: Plan
    step: StepPlan
    record: StepRecord
    model_dir: str
    output_dir: Path
    report: dict[str, Any]
    seed: int
    data_path: Path | None = None


def load_hook(key: str, name: str) -> Callable[[StepContext], object]:
    """The function that `sdpo.before_step` or `sdpo.after_step` names.

    Modules are looked for in the working directory, too, as `python -m` does and `axolotl` by itself does not.

    Args:
        key: "before_step" or "after_step".
        name: package.module:function.

    Raises:
        ConfigError: it cannot be imported, is no function, or does not take one argument.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module, _, function = name.partition(":")
    with _in_our_words(lambda error: ConfigError(f"sdpo.{key}: {name!r} cannot be imported: {_brief(error)}.")):
        found: Callable[[StepContext], object] | None = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        what = "has no such name" if found is None else f"has {type(found).__name__} there, which cannot be called"
        raise ConfigError(f"sdpo.{key}: {name!r}: the module {what}; set package.module:function.")
    if not _takes_one(found):
        taken = inspect.signature(found).replace(return_annotation=inspect.Signature.empty)
        raise ConfigError(
            f"sdpo.{key}: {name!r} takes {taken}, and it is called with one argument, a "
            "sdpo_plugin.StepContext; give it one parameter."
        )
    return found


def call_hook(key: str, name: str, context: StepContext) -> None:
    """Call a hook; what it returns is not looked at.

    Raises:
        HookError: it has raised anything, or asked the process to exit; with its traceback.
    """
    with _in_our_words(lambda error: _failed(key, name, context, error)):
        load_hook(key, name)(context)


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a function of C may not say what it takes
        return True
    return True


def _failed(key: str, name: str, context: StepContext, error: BaseException) -> HookError:
    """The text alone: other ranks are told by a pickle, and an error of the user's own may not be one."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    trace = "".join(traceback.format_exception(type(error), error, frame)).rstrip()
    when = "before" if key == "before_step" else "after"
    return HookError(
        f"sdpo.{key}: {name} failed {when} step {context.step.name} ({context.step.index} of "
        f"{len(context.plan.steps)}): {_brief(error)}\n{trace}\nNothing that was done is lost: the model is "
        f"{context.model_dir}. Mend the hook, and run the same command with auto_resume_from_checkpoints: true, which "
        "calls it again."
    )


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _in_our_words(told: Callable[[BaseException], SDPOError]) -> Iterator[None]:
    """Whatever the user's code raises ends the run in words of ours, on every rank; also a wish to exit, of which the
    others would not hear."""
    try:
        yield
    except (Exception, SystemExit) as error:  # the one place for that: it is not our code
        raise told(error) from error
