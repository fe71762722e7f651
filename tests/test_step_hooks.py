"""The user's own code around a step: found or refused by name, and whatever it raises told in words of ours."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import sdpo_plugin
from sdpo_plugin.errors import ConfigError, HookError
from sdpo_plugin.run_dir.ledger import StepRecord
from sdpo_plugin.step_hooks import StepContext, call_hook, load_hook
from tests.fakes import make_plan

CODE = """
import sys

value = 3


def good(context):
    context.report["seen"] = (context.step.name, context.model_dir)
    return "not looked at"


def keywords(context, more=1, *rest, **options): ...


def none(): ...


def two(context, report): ...


def fails(context):
    raise ValueError("no  prompt\\nhere")


def leaves(context):
    sys.exit(0)


def stops(context):
    raise KeyboardInterrupt
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module and a package of hooks, which is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_hooks.py").write_text(CODE)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pairs.py").write_text("def make(context): ...")
    (tmp_path / "torn.py").write_text("def make(context:\n")
    yield tmp_path
    for name in ("own_hooks", "own", "own.pairs", "torn"):
        sys.modules.pop(name, None)


def context() -> StepContext:
    """Before step 2 of two."""
    plan = make_plan()
    return StepContext(plan, plan.steps[1], StepRecord(), "/runs/out/step-1", Path("/runs/out"), {}, seed=7)


def test_context_is_the_packages() -> None:
    assert sdpo_plugin.StepContext is StepContext


@pytest.mark.parametrize("name", ["own_hooks:good", "own_hooks:keywords", "own.pairs:make"])
def test_hook_is_found_from_the_working_directory(folder: Path, name: str) -> None:
    assert load_hook("before_step", name).__name__ == name.rpartition(":")[2]


def test_what_the_working_directory_holds_hides_nothing(folder: Path) -> None:
    before = list(sys.path)
    load_hook("before_step", "own_hooks:good")
    load_hook("before_step", "own_hooks:keywords")
    assert sys.path == [*before, str(folder)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param(
            "nowhere:make",
            "sdpo.after_step: 'nowhere:make' cannot be imported: ModuleNotFoundError: No module named 'nowhere'.",
            id="no-module",
        ),
        pytest.param(
            "torn:make", "sdpo.after_step: 'torn:make' cannot be imported: SyntaxError: '(' was never closed", id="torn"
        ),
        pytest.param(
            "own_hooks:other",
            "sdpo.after_step: 'own_hooks:other': the module has no such name; set package.module:function.",
            id="no-function",
        ),
        pytest.param(
            "own_hooks:value",
            "sdpo.after_step: 'own_hooks:value': the module has int there, which cannot be called; set",
            id="a-number",
        ),
        pytest.param(
            "own_hooks:none",
            "sdpo.after_step: 'own_hooks:none' takes (), and it is called with one argument, a ",
            id="no-argument",
        ),
        pytest.param(
            "own_hooks:two",
            "sdpo.after_step: 'own_hooks:two' takes (context, report), and it is called with one argument",
            id="two-arguments",
        ),
    ],
)
def test_what_is_no_hook_is_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(why)}"):
        load_hook("after_step", name)


def test_hook_is_given_the_context_and_its_answer_is_not_looked_at(folder: Path) -> None:
    given = context()
    call_hook("before_step", "own_hooks:good", given)
    assert given.report == {"seen": ("step-2", "/runs/out/step-1")}


def test_failure_names_hook_step_cause_and_how_to_resume(folder: Path) -> None:
    with pytest.raises(HookError) as caught:
        call_hook("before_step", "own_hooks:fails", context())
    first, *trace, last = str(caught.value).splitlines()
    assert first == ("sdpo.before_step: own_hooks:fails failed before step step-2 (2 of 2): ValueError: no prompt here")
    assert trace[:2] == ["Traceback (most recent call last):", f'  File "{folder}/own_hooks.py", line 22, in fails']
    assert last == (
        "Nothing that was done is lost: the model is /runs/out/step-1. Mend the hook, and run the same command with "
        "auto_resume_from_checkpoints: true, which calls it again."
    )


def test_failure_after_a_step_says_so(folder: Path) -> None:
    given = replace(context(), model_dir="/runs/out/step-2")
    with pytest.raises(HookError, match=r"^sdpo\.after_step: own_hooks:fails failed after step step-2 \(2 of 2\)"):
        call_hook("after_step", "own_hooks:fails", given)


def test_hook_that_exits_ends_no_run_as_if_it_were_done(folder: Path) -> None:
    with pytest.raises(HookError, match=r"own_hooks:leaves failed before step step-2 \(2 of 2\): SystemExit: 0"):
        call_hook("before_step", "own_hooks:leaves", context())


def test_interrupt_is_the_users(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        call_hook("before_step", "own_hooks:stops", context())
