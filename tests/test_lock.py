"""A directory has one run at a time, however the run before it ended."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.lock import RunLock, require_free
from sdpo_plugin.run_dir.paths import RunDir
from tests.faults import end_of, fork


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until another process has come so far."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the other process did not come so far"
        time.sleep(0.002)


@pytest.fixture
def lock_path(run_dir: RunDir) -> Path:
    return run_dir.lock


def hold(path: Path, then: Callable[[], None] = lambda: None) -> int:
    """A process that holds the lock until it is killed; its id."""

    def work() -> None:
        lock = RunLock(path)
        then()
        (path.parent / "held").touch()
        signal.pause()
        lock.release()

    pid = fork(work)
    wait_for((path.parent / "held").exists)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    end_of(pid)


def test_second_process_is_refused_and_told_who_holds_the_directory(lock_path: Path) -> None:
    pid = hold(lock_path)
    expected = (
        f"output_dir: {str(lock_path.parent.parent)!r} is in use by another run (process {pid} on "
        f"{socket.gethostname()}); wait for it or end it, or set another output_dir."
    )
    try:
        for _ in range(2):  # having been refused does not break the lock
            with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
                RunLock(lock_path)
    finally:
        kill(pid)


def test_lock_goes_with_the_process_that_held_it(lock_path: Path) -> None:
    kill(hold(lock_path))
    lock = RunLock(lock_path)
    assert json.loads(lock_path.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    lock.release()


def test_child_that_outlives_its_run_does_not_keep_the_lock(lock_path: Path) -> None:
    """A data loader's worker may outlive the run; if it inherited the lock, the directory could not be used."""
    child = lock_path.parent / "child"

    def leave_a_child() -> None:
        child.write_text(str(fork(signal.pause)))

    pid = hold(lock_path, leave_a_child)
    kill(pid)
    orphan = int(child.read_text())
    try:
        os.kill(orphan, 0)  # it lives
        RunLock(lock_path).release()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_child_that_ends_does_not_take_the_lock_with_it(lock_path: Path) -> None:
    lock = RunLock(lock_path)
    assert end_of(fork(lambda: None)) == 0

    def try_to_take_it() -> None:
        with pytest.raises(OutputError, match=f"process {os.getppid()} on "):
            RunLock(lock_path)

    assert end_of(fork(try_to_take_it)) == 0
    lock.release()


def test_released_lock_can_be_taken_again_by_anyone(lock_path: Path) -> None:
    lock = RunLock(lock_path)
    lock.release()
    lock.release()  # idempotent
    assert end_of(fork(lambda: RunLock(lock_path).release())) == 0
    RunLock(lock_path).release()


def test_lock_that_is_held_can_be_taken_by_no_other_after_it_was_taken_again(lock_path: Path) -> None:
    RunLock(lock_path).release()
    lock = RunLock(lock_path)

    def try_to_take_it() -> None:
        with pytest.raises(OutputError):
            RunLock(lock_path)

    assert end_of(fork(try_to_take_it)) == 0
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}'], ids=repr)
def test_holder_that_has_not_said_who_it_is(lock_path: Path, content: str) -> None:
    """It has the lock and is about to write its name."""
    lock_path.parent.mkdir(parents=True)
    lock_path.write_text(content)

    def work() -> None:
        with lock_path.open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            (lock_path.parent / "held").touch()
            signal.pause()

    pid = fork(work)
    wait_for((lock_path.parent / "held").exists)
    try:
        with pytest.raises(OutputError, match=r"is in use by another run \(it has not said which\)"):
            RunLock(lock_path)
    finally:
        kill(pid)


def test_lock_is_not_written_through_a_link(lock_path: Path) -> None:
    """The file that the link leads to would be emptied."""
    victim = lock_path.parent.parent.parent / "victim"
    victim.write_text("not the run's")
    lock_path.parent.mkdir(parents=True)
    lock_path.symlink_to(victim)
    expected = (
        f"{lock_path} is a symbolic link to {victim}, and a run writes nothing outside of its output_dir; "
        "put what it leads to in its place, or remove the link."
    )
    for _ in range(2):
        with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
            RunLock(lock_path)
        assert victim.read_text() == "not the run's"
    victim.unlink()  # a link that leads nowhere would make a file there
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        RunLock(lock_path)
    assert not victim.exists()
    lock_path.unlink()  # the remedy helps
    RunLock(lock_path).release()


def test_lock_is_not_written_into_another_file(lock_path: Path) -> None:
    victim = lock_path.parent.parent.parent / "victim"
    victim.write_text("not the run's")
    lock_path.parent.mkdir(parents=True)
    lock_path.hardlink_to(victim)
    expected = (
        f"{lock_path} is one file with another (2 hard links), which the run's lock would overwrite; delete this name "
        "of it."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        RunLock(lock_path)
    assert victim.read_text() == "not the run's"
    lock_path.unlink()
    RunLock(lock_path).release()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_lock_that_is_no_file_is_refused_and_not_waited_for(lock_path: Path, make: Callable[[Path], None]) -> None:
    lock_path.parent.mkdir(parents=True)
    make(lock_path)
    expected = f"{lock_path} is no file, and the run's lock has to stand there; remove it."
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        RunLock(lock_path)


@pytest.mark.parametrize("exists", [True, False])
def test_records_of_a_run_do_not_lie_behind_a_link(lock_path: Path, exists: bool) -> None:
    elsewhere = lock_path.parent.parent.parent / "elsewhere"
    if exists:
        elsewhere.mkdir()
    lock_path.parent.parent.mkdir()
    lock_path.parent.symlink_to(elsewhere)
    with pytest.raises(OutputError, match=rf"^{re.escape(str(lock_path.parent))} is a symbolic link to "):
        RunLock(lock_path)
    assert not elsewhere.exists() or not any(elsewhere.iterdir())


def test_output_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    """It is where the user wants the run."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    RunLock(RunDir(tmp_path / "out").lock).release()
    assert (tmp_path / "disk" / "sdpo" / "lock").is_file()


def test_file_system_without_locks_is_reported(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    expected = (
        f"output_dir: {str(lock_path.parent.parent)!r} cannot be locked ([Errno {errno.ENOLCK}] No locks available), "
        "so two runs could spoil each other there; set an output_dir on a file system with locks "
        "(Lustre: mount with -o flock)."
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        RunLock(lock_path)


def test_looking_at_a_lock_touches_nothing(lock_path: Path) -> None:
    require_free(lock_path)
    assert not lock_path.parent.exists()
    RunLock(lock_path).release()
    lock_path.write_text("as it was")
    lock_path.chmod(0o444)
    before = lock_path.stat()
    require_free(lock_path)
    assert lock_path.read_text() == "as it was"
    assert lock_path.stat().st_mtime_ns == before.st_mtime_ns


def test_looking_at_a_lock_that_is_held(lock_path: Path) -> None:
    pid = hold(lock_path)
    content = lock_path.read_bytes()
    expected = f"output_dir: {str(lock_path.parent.parent)!r} is in use by another run (process {pid} on "
    try:
        for _ in range(2):
            with pytest.raises(OutputError, match=f"^{re.escape(expected)}"):
                require_free(lock_path)
    finally:
        kill(pid)
    assert lock_path.read_bytes() == content
    require_free(lock_path)


def test_ranks_that_look_at_once_do_not_refuse_each_other(lock_path: Path) -> None:
    RunLock(lock_path).release()
    with lock_path.open(encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)  # as `require_free` holds it for a moment
        assert end_of(fork(lambda: require_free(lock_path))) == 0


def test_lock_that_cannot_be_written_is_given_back(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)
        with pytest.raises(OSError, match="No space left on device"):
            RunLock(lock_path)
    assert end_of(fork(lambda: RunLock(lock_path).release())) == 0
