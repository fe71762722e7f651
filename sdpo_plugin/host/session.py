"""One run in one output directory: its lock, whether it begins or goes on, and which model is loaded for that."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.drift import VERSIONS, changes, require_same_run, require_same_step, require_same_steps
from sdpo_plugin.errors import OutputError
from sdpo_plugin.files import written
from sdpo_plugin.host.datasets import StepData
from sdpo_plugin.host.distributed import on_rank_0
from sdpo_plugin.host.identity import identity_of, settings_of, source_names
from sdpo_plugin.ledger import Ledger, RunDir
from sdpo_plugin.lock import RunLock
from sdpo_plugin.overwrites import names_in_place, require_inputs_kept, written_names
from sdpo_plugin.report import write_report
from sdpo_plugin.resume import FRESH, TO_GO_ON, Start, clear, close_run, find_start, require_fresh, sweep

LOG = logging.getLogger("axolotl.sdpo_plugin")


class Session:
    """The life of a run in this process.

    Attributes:
        run: the output directory.
        start: where the run begins or is resumed, once it is open.
        identity: what must be the same when the run is resumed, once it is open.
    """

    def __init__(self, cfg: DictDefault, block: SDPOConfig) -> None:
        self.run = RunDir(Path(cfg.output_dir))
        self.start: Start = FRESH
        self.identity: dict[str, dict[str, Any]] = {}
        self._cfg, self._block = cfg, block
        self._lock: RunLock | None = None
        self._base: tuple[str, str] | None = None

    def check(self) -> None:
        """Refuse what can be refused before data are loaded, touching nothing.

        Every rank has asked for the lock when it read the config, and one that is late must not find rank 0's.

        Raises:
            OutputError: another run is at work here, or this one would overwrite what an earlier one has made or what
                it reads itself.
        """

        def look() -> None:
            if self.run.lock.exists():
                self._lock = RunLock(self.run.lock)
            names = written_names(self._block, len(self._cfg.datasets))
            require_inputs_kept(self.run, names, self._cfg, self._block)
            if not self._resumes:
                require_fresh(self.run, self._names())

        PartialState().wait_for_everyone()
        on_rank_0(look)

    def open(self, steps: Sequence[StepData]) -> None:
        """Take the directory and decide where to begin.

        Args:
            steps: data of each entry of `datasets:`, or of each of `sdpo.steps`, as the host has prepared them.

        Raises:
            OutputError: as in ``check``; or there is nothing to resume, or it is damaged.
            ConfigError: the run would be resumed with something else than it began with.
            SystemExit: status 0: the run is finished already.
        """
        tokenizer = load_tokenizer(self._cfg)
        self.identity = on_rank_0(lambda: identity_of(self._cfg, self._block, tokenizer, steps))
        self.start = on_rank_0(self._decide)
        if self.start.ledger is not None:
            self._require_same(self.start.ledger, steps)
        for line in self.start.passed_over:
            _tell(line)
        if self.start.action.kind == "nothing":
            _tell(f"this run is finished: {self.run.root} holds its final model. Nothing is left to do.")
            raise SystemExit(0)
        self._redirect()

    def _require_same(self, ledger: Ledger, steps: Sequence[StepData]) -> None:
        """What the run is made of is what it began with; of a finished one the hyper-parameters too, which are
        compared step by step where there are steps to train."""
        if self._block.partition is None:
            require_same_steps([record.name for record in ledger.steps], [step.name for step in steps])
        require_same_run(ledger.identity, self.identity, source_names(steps))
        for change in changes(ledger.identity[VERSIONS], self.identity[VERSIONS]):
            _tell(f"the run is resumed with other software than it began with: {change}", logging.WARNING)
        if self.start.action.kind in ("save", "nothing"):
            for number, record in enumerate(ledger.steps):
                cfg = steps[number % len(steps)].cfg  # the steps of a partition share theirs
                require_same_step(record.name, record.settings, settings_of(cfg, 1), from_checkpoint=False)

    @property
    def is_redirected(self) -> bool:
        """Whether the host loads a model of this run in place of the base model."""
        return self._base is not None

    def model_is_loaded(self) -> None:
        """The host has loaded what ``open`` told it; the config says again what the user wrote."""
        if self._base is not None and self._cfg.base_model != self._base[0]:
            self._cfg.base_model, self._cfg.base_model_config = self._base

    def close(self) -> None:
        """The host has written the final model."""
        if self._lock is not None:  # rank 0; the process group is gone
            with written(self.run.ledger):
                close_run(self.run, keep_last=self._block.export_steps == "all")
                write_report(self.run)
        self.release()

    def release(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def _resumes(self) -> bool:
        return bool(self._cfg.resume_from_checkpoint or self._cfg.auto_resume_from_checkpoints)

    def _names(self) -> list[str]:
        return names_in_place(self.run, self._block)

    def _decide(self) -> Start:
        if self._lock is None:
            with written(self.run.lock):
                self._lock = RunLock(self.run.lock)
        asked = self._cfg.resume_from_checkpoint
        if not self._resumes or not self.run.ledger.exists():
            if asked:
                raise OutputError(
                    f"resume_from_checkpoint: {asked!r}, but output_dir: {str(self.run.root)!r} holds no run to go on "
                    f"with; set the output_dir of that run, or {TO_GO_ON}, which begins where there is none."
                )
            require_fresh(self.run, self._names())
            clear(self.run)
            return FRESH
        whole_run = asked is None or Path(asked).resolve() == self.run.root.resolve()
        start = find_start(self.run, None if whole_run else Path(asked))
        if start.action.kind == "nothing":
            assert start.ledger is not None
            sweep(self.run, start.ledger)
        return start

    def _redirect(self) -> None:
        """Let the host load M_{t-1}, or the checkpoint, in place of a base model that would be overwritten at once.

        With an adapter the base model is needed; so it is with `policy_init: base`, while there are steps to train.
        """
        source = self.start.checkpoint or self.start.model_dir
        trains = self.start.action.kind in ("prepare", "score", "train")
        if source is None or self._cfg.adapter or (trains and self._block.policy_init == "base"):
            return
        self._base = (self._cfg.base_model, self._cfg.base_model_config)
        self._cfg.base_model = self._cfg.base_model_config = str(source)


def describe(start: Start) -> str:
    """Where a run goes on, for the log."""
    step = f"step {start.action.step}" if start.action.step else "the end"
    if start.checkpoint is not None:
        return f"going on with {step} from {start.checkpoint}"
    return f"going on with {step} from {start.action.model}, next: {start.action.kind}"


def _tell(text: str, level: int = logging.INFO) -> None:
    if is_main_process():
        LOG.log(level, text)
