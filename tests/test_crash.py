"""An error of this package reaches the user as its message, once."""

import re
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType

import pytest

from sdpo_plugin import crash
from tests.conftest import RunPython

DIE = """
import os, time
from sdpo_plugin import crash
from sdpo_plugin.errors import ConfigError
crash.SECONDS_FOR_RANK_0 = float(os.environ.get("WAIT", "0.01"))
crash.install()
crash.install()
began = time.perf_counter()
import atexit
atexit.register(lambda: print(f"{time.perf_counter() - began:.3f}"))
"""
RAISE = 'raise ConfigError("relora: True clashes;\\nremove relora.")'


@pytest.fixture(scope="module")
def refused(run_python: RunPython) -> subprocess.CompletedProcess[str]:
    """A process that met an error of this package, on rank 0."""
    return run_python(DIE + RAISE, RANK="0", WAIT="30")


def test_error_is_one_message_without_traceback(refused: subprocess.CompletedProcess[str]) -> None:
    assert refused.stderr == "\nConfigError\nsdpo_plugin: relora: True clashes;\nsdpo_plugin: remove relora.\n"


def test_error_ends_the_process_with_code_1(refused: subprocess.CompletedProcess[str]) -> None:
    assert refused.returncode == 1


def test_rank_0_does_not_wait(refused: subprocess.CompletedProcess[str]) -> None:
    assert float(refused.stdout) < 30


def test_process_without_a_rank_is_rank_0(run_python: RunPython) -> None:
    assert run_python(DIE + RAISE).stderr.startswith("\nConfigError\nsdpo_plugin: relora: True clashes;")


def test_other_ranks_wait_and_say_who_they_are(run_python: RunPython) -> None:
    done = run_python(DIE + RAISE, RANK="1", WAIT="0.25")
    assert done.stderr.startswith("\nConfigError on rank 1\nsdpo_plugin: relora: True clashes;")
    assert float(done.stdout) >= 0.25
    assert done.returncode == 1


def test_other_errors_keep_their_traceback(run_python: RunPython) -> None:
    done = run_python(DIE + "1 / 0")
    assert re.fullmatch(
        r"Traceback \(most recent call last\):\n.*ZeroDivisionError: division by zero\n", done.stderr, re.DOTALL
    )
    assert done.returncode == 1


def test_debug_level_shows_the_traceback(run_python: RunPython) -> None:
    done = run_python(DIE + "import logging; logging.getLogger('axolotl').setLevel('DEBUG')\n" + RAISE)
    assert "Traceback (most recent call last):" in done.stderr
    assert "sdpo_plugin.errors.ConfigError: relora: True clashes;\nremove relora.\n" in done.stderr


GLOO = "[/build/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711"
NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error, NCCL version 2.27\\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\\n"
    "Last error:\\nsocketProgress: Connection closed by remote peer"
)
NCCL_SAYS = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error, NCCL version 2.27 "
    "… ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)


@pytest.mark.parametrize(("error", "says"), [(GLOO, GLOO), (f"\\n{GLOO}\\nmore", GLOO), (NCCL, NCCL_SAYS)])
@pytest.mark.parametrize("rank", ["0", "3"])
def test_rank_that_lost_another_says_what_it_met_and_what_that_means_where_no_rank_knows_the_cause(
    run_python: RunPython, error: str, says: str, rank: str
) -> None:
    """A network that fails leaves each rank with such an error, and no traceback of any would say more."""
    program = f'{DIE}\ncrash.SECONDS_FOR_THE_CAUSE = 0.25\nraise RuntimeError("{error}")'
    done = run_python(program, RANK=rank, WORLD_SIZE="4")
    assert done.stderr == (
        f"\nsdpo_plugin: rank {rank} ends because another rank did: RuntimeError: {says} (the cause is what another "
        "rank says; if each rank says this, then the network between the ranks failed, or one was killed, e.g. out of "
        "memory: look at dmesg and at the launcher's log)\n"
    )
    assert float(done.stdout) >= 0.25
    assert done.returncode == 1


def test_lost_peer_of_a_run_of_one_rank_is_an_error_like_others(run_python: RunPython) -> None:
    assert "Traceback" in run_python(f'{DIE}\nraise RuntimeError("{GLOO}")', WORLD_SIZE="1").stderr


@pytest.fixture
def earlier_hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hook that was there before ours; the list records what it was given."""
    given: list[str] = []

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        given.append(str(error))

    monkeypatch.setattr(sys, "excepthook", hook)
    yield given
    crash.uninstall()


def test_installed_hook_hands_other_errors_to_the_earlier_one(earlier_hook: list[str]) -> None:
    crash.install()
    sys.excepthook(ValueError, ValueError("not ours"), None)
    assert earlier_hook == ["not ours"]


def test_uninstall_puts_the_earlier_hook_back(earlier_hook: list[str]) -> None:
    before = sys.excepthook
    crash.install()
    assert sys.excepthook is not before
    crash.uninstall()
    assert sys.excepthook is before


def test_uninstall_leaves_a_later_hook_alone(earlier_hook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def later(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        pass

    crash.install()
    ours = sys.excepthook
    sys.excepthook = later
    crash.uninstall()
    assert sys.excepthook is later
    sys.excepthook = ours


def test_install_after_a_wrapping_hook_does_not_loop(earlier_hook: list[str]) -> None:
    crash.install()
    ours = sys.excepthook

    def wrapper(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        ours(kind, error, trace)  # as wandb and others do

    sys.excepthook = wrapper
    try:
        crash.install()
        sys.excepthook(ValueError, ValueError("not ours"), None)
    finally:
        sys.excepthook = ours
    assert earlier_hook == ["not ours"]


def test_empty_rank_is_rank_0(run_python: RunPython) -> None:
    done = run_python(DIE + RAISE, RANK="")
    assert done.stderr == "\nConfigError\nsdpo_plugin: relora: True clashes;\nsdpo_plugin: remove relora.\n"


def test_uninstall_forgets_the_earlier_hook(earlier_hook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed again later, ours calls the hook that it finds then."""
    crash.install()
    crash.uninstall()
    later: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: later.append(str(error)))
    crash.install()
    sys.excepthook(ValueError, ValueError("not ours"), None)
    assert (earlier_hook, later) == ([], ["not ours"])
