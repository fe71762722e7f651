"""SIGTERM and SIGINT: finish the optimizer step, write a checkpoint, say how to resume. A second signal ends at once.
A launcher that is gone is a SIGTERM: nobody would ever send one."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from sdpo_plugin.host.engines.ranks import largest, wait_for_all
from sdpo_plugin.host.launcher import launchers
from sdpo_plugin.host.workers import SIGNALS
from sdpo_plugin.run_dir.checkpoints import KEY_TO_RESUME

# A terminal or a scheduler signals the whole process group and the launcher passes it on: the same request, twice.
SAME_REQUEST_SECONDS = 1.0
SECONDS_TO_NOTICE = 1.0  # that the launcher is gone
END = b"\0"  # no signal's number


class StopRequest:
    """Whether someone has asked this run to stop.

    The kernel's signal is noticed by a thread of its own, by way of a wake-up descriptor, so that a second one ends
    the process even where the main thread waits in a collective.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of the handlers that are there; put them back at the end.

        Python delivers signals to the main thread only: elsewhere nothing is installed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        earlier = {signum: signal.signal(signum, _ignore) for signum in SIGNALS}
        watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            for signum, handler in earlier.items():  # None: it was not Python's, and cannot be put back
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(earlier_fd)
            writer.send(END)  # closing would not do: worker processes hold the other end too
            watcher.join()
            writer.close()
            reader.close()

    def agreed(self) -> int:
        """The signal that one of the ranks was sent, 0 for none; the same answer on every rank, which all ask."""
        signum = largest(self._signum)
        if signum and not self._signum:
            self._look_for_launchers()  # another rank was the first to notice; rank 0 says why the run stops
        return signum

    def _watch(self, reader: socket.socket) -> None:
        reader.settimeout(SECONDS_TO_NOTICE)
        received, looked = b"", 0.0
        while END not in received:
            try:
                received = reader.recv(64)
            except TimeoutError:
                received = b""
            for signum in received:
                if signum in SIGNALS:
                    self._take(signum)
            if time.monotonic() - looked >= SECONDS_TO_NOTICE:  # every data loader worker that ends is a signal, too
                self._look_for_launchers()
                looked = time.monotonic()

    def _look_for_launchers(self) -> None:
        gone = [launcher for launcher in launchers() if not launcher.is_alive()]
        if gone and not self._signum:
            self._take(signal.SIGTERM, f"{gone[0].name}, which launched this run (process {gone[0].pid}), is gone")

    def _take(self, signum: int, why: str | None = None) -> None:
        now = time.monotonic()
        name = signal.Signals(signum).name
        if not self._signum:
            self._signum, self._since = signum, now
            _say(f"{why or name}: the run stops after this update, with a checkpoint. A second signal ends it at once.")
        elif why is None and now - self._since > SAME_REQUEST_SECONDS:
            _say(f"{name} again: ended at once.")
            os._exit(128 + signum)


class Stopped(SystemExit):
    """The run ends as a signal asked, with the conventional exit status 128 + signal number."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(128 + signum)
        _say(
            f"stopped by {signal.Signals(signum).name}: {where}. To resume, run the same command with {KEY_TO_RESUME}."
        )


@contextmanager
def ending_together() -> Iterator[None]:
    """A run that has been asked to stop ends on all ranks at once: a launcher ends the others when one of them is gone,
    and rank 0 may still remove checkpoints or end its loggers."""
    try:
        yield
    except Stopped:
        with suppress(RuntimeError):  # a rank is gone already
            wait_for_all()
        raise


def _say(text: str) -> None:
    if int(os.environ.get("RANK") or "0") == 0:
        with suppress(OSError):  # the terminal may have gone with the launcher
            print(f"\nsdpo_plugin: {text}", file=sys.stderr, flush=True)  # a progress bar may stand in this line


def _ignore(signum: int, frame: FrameType | None) -> None:
    """The signal has been noted by the time that Python calls this."""
