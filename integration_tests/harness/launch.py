"""Starts runs of the host's command line, forked from a warm process.

Standard library only, so that the test process stays quick and holds nothing of the host.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from integration_tests.harness.env import ROOT, Env, free_port, host_env, node_env, rank_env
from integration_tests.harness.results import Result
from integration_tests.harness.running import TIMEOUT, Running


class Host:
    """The host, warm. One a test session; `scratch` takes its logs and caches."""

    def __init__(self, scratch: Path) -> None:
        """Start the warm process; the first run waits for its imports."""
        self.scratch = Path(scratch)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.import_seconds = 0.0
        self._runs = 0
        self._codes: dict[int, int] = {}
        self._pids: list[list[int]] = []
        self._ready = False
        self._gone = False
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._log = self.scratch / "zygote.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integration_tests.harness.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=host_env(self.scratch),
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._news:
                if "ready" in message:
                    self._ready, self.import_seconds = True, message["ready"]
                elif "pids" in message:
                    self._pids.append(message["pids"])
                    for pid in message["pids"]:  # process ids are reused: forget an earlier exit code
                        self._codes.pop(pid, None)
                else:
                    self._codes[message["exit"]] = message["code"]
                self._news.notify_all()
        with self._news:
            self._gone = True
            self._news.notify_all()

    def _await(self, seen: Callable[[], Any], timeout: float = 400.0) -> None:
        with self._news:
            if not self._news.wait_for(lambda: self._gone or seen(), timeout) or self._gone:
                raise RuntimeError(f"the warm process does not answer; its log ends:\n{self._log.read_text()[-4000:]}")

    def _send(self, ranks: list[dict[str, Any]]) -> list[int]:
        assert self._process.stdin is not None
        self._await(lambda: self._ready)
        with self._sending:
            self._process.stdin.write(json.dumps({"ranks": ranks}).encode() + b"\n")
            self._process.stdin.flush()
            self._await(lambda: self._pids)
            return self._pids.pop(0)

    def _ended(self) -> dict[int, int]:
        with self._news:
            if self._gone:
                raise RuntimeError(f"the warm process is gone; its log ends:\n{self._log.read_text()[-4000:]}")
            return dict(self._codes)

    def _run_dir(self) -> Path:
        with self._sending:
            self._runs += 1
            folder = self.scratch / "runs" / f"{self._runs:04d}"
        folder.mkdir(parents=True)
        return folder

    def start(
        self,
        args: Sequence[str],
        cwd: Path,
        env: Env | None = None,
        ranks: int = 1,
        stdin: str = "",
        init_seed: int | None = 0,
    ) -> Running:
        """Start `axolotl <args>` in a fork and return at once.

        The host draws a new adapter's weights before it sets any seed: no two LoRA runs are alike. `init_seed` seeds
        the process first, so that they can be compared; None leaves it to chance, as in a real run.
        """
        folder, port = self._run_dir(), free_port()
        source = folder / "stdin"
        source.write_text(stdin, encoding="utf-8")
        logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        common = {
            "argv": [str(arg) for arg in args],
            "cwd": str(cwd),
            "stdin": str(source),
            "cpu_ranks": ranks > 1,
            "init_seed": init_seed,
        }
        per_rank = [
            common | {"log": str(log), "env": (rank_env(rank, ranks, port) if ranks > 1 else {}) | dict(env or {})}
            for rank, log in enumerate(logs)
        ]
        return Running(["axolotl", *map(str, args)], self._send(per_rank), logs, self._ended)

    def start_nodes(self, args: Sequence[str], folders: Sequence[Path], env: Env | None = None) -> Running:
        """Start `axolotl <args>` on one machine a folder: a rank each, from there, as a launcher on each starts it."""
        scratch, port = self._run_dir(), free_port()
        logs = [scratch / f"rank{node}.log" for node in range(len(folders))]
        ranks = [
            {
                "argv": [str(arg) for arg in args],
                "cwd": str(folder),
                "log": str(log),
                "cpu_ranks": True,
                "init_seed": 0,
                "env": node_env(node, len(folders), port) | dict(env or {}),
            }
            for node, (folder, log) in enumerate(zip(folders, logs, strict=True))
        ]
        return Running(["axolotl", *map(str, args)], self._send(ranks), logs, self._ended)

    def run(self, args: Sequence[str], cwd: Path, timeout: float = TIMEOUT, **options: Any) -> Result:
        """Run `axolotl <args>` to its end; the options are those of `start`."""
        return self.start(args, cwd, **options).wait(timeout)

    def train(self, config: Path, *extra: str, **options: Any) -> Result:
        """`axolotl train` of a config file, from its folder, in this one process (or these ranks)."""
        return self.run(["train", str(config), "--launcher", "python", *extra], Path(config).parent, **options)

    def python(self, target: str, *args: Any, timeout: float = TIMEOUT, **kwargs: Any) -> Any:
        """Call `module:function` in a fork; arguments and result travel as JSON."""
        folder = self._run_dir()
        result, log = folder / "result.json", folder / "rank0.log"
        arguments = json.loads(json.dumps({"args": args, "kwargs": kwargs}, default=str))  # paths become text
        request = {"call": target, "cwd": str(folder), "log": str(log), "result": str(result), **arguments}
        Running([target], self._send([request]), [log], self._ended).wait(timeout).check()
        return json.loads(result.read_text(encoding="utf-8"))

    def close(self) -> None:
        """End the warm process and every run still under way."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(10)
        self._process.stdout.close()


@contextmanager
def start_host(scratch: Path) -> Iterator[Host]:
    """A warm host for the length of a test session."""
    host = Host(scratch)
    try:
        yield host
    finally:
        host.close()
