"""One run in one run directory: its lock, whether it begins or is resumed, and which model is loaded for that."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from transformers.utils import CONFIG_NAME

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.host.data.loading import LoadedSource
from sdpo_plugin.host.engines.ranks import on_rank_0, require_seen_by_all
from sdpo_plugin.host.identity import identity_of, require_same, wanted_run
from sdpo_plugin.host.telling import can_be_resumed, tell_the_end
from sdpo_plugin.plan import Plan
from sdpo_plugin.run_dir.files import explaining_write_errors
from sdpo_plugin.run_dir.fresh import require_fresh
from sdpo_plugin.run_dir.growth import Wanted
from sdpo_plugin.run_dir.inputs import names_in_place, require_inputs_kept, written_names
from sdpo_plugin.run_dir.journal import close_run
from sdpo_plugin.run_dir.lock import RunLock
from sdpo_plugin.run_dir.opening import open_run
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import FRESH, Start, steps_with_made_rows, with_last_model

LOG = logging.getLogger("axolotl.sdpo_plugin")


class Session:
    """The life of a run in this process.

    Attributes:
        run: the run directory.
        start: where the run begins or is resumed, once it is open.
        identity: what must be the same when the run is resumed, once it is open.
        made: names of the steps whose rows a hook of the run has made already, once it is checked.
    """

    def __init__(self, cfg: DictDefault, block: SDPOConfig) -> None:
        self.run = RunDir(Path(cfg.output_dir))
        self.start: Start = FRESH
        self.identity: dict[str, dict[str, Any]] = {}
        self.made: tuple[str, ...] = ()
        self._cfg, self._block = cfg, block
        self._lock: RunLock | None = None
        self._base: tuple[str, str] | None = None
        self._is_trained = False

    def check(self) -> None:
        """Refuse what can be refused before data are loaded. Takes the lock if its file exists; writes nothing else.

        Every rank has asked for the lock when it read the config, and one that is late must not find rank 0's.

        Raises:
            OutputError: another run is at work here, or this one would overwrite what an earlier one has made or what
                it reads itself; rows that a hook of the run has made are missing, or have been changed.
        """

        def look() -> tuple[str, ...]:
            if self.run.lock.exists():
                self._lock = RunLock(self.run.lock)
            names = written_names(self._block, len(self._cfg.datasets))
            require_inputs_kept(self.run, names, self._cfg, self._block)
            if not self._resumes:
                require_fresh(self.run, self._names())
                return ()
            return steps_with_made_rows(self.run)

        can_be_resumed(None)  # of an earlier run in this process
        PartialState().wait_for_everyone()
        self.made = on_rank_0(look)
        if self.made:
            require_seen_by_all(self.run.made_rows, "sdpo.before_step has made", self.run.root)

    def open(self, sources: Sequence[LoadedSource], plan: Plan) -> None:
        """Take the directory and decide where to begin.

        Args:
            sources: data of each entry of `datasets:`, or of each of `sdpo.steps`, as the host has prepared them.
            plan: of the steps, as far as it is known.

        Raises:
            OutputError: as in ``check``; or there is nothing to resume, or it is damaged.
            ConfigError: the run would be resumed with something else than it began with.
            SystemExit: status 0: the run is finished already.
        """
        self.identity = identity_of(self._cfg, self._block, sources)
        wanted = wanted_run(plan, self.identity, sources)
        self.start = on_rank_0(lambda: self._decide(wanted))
        if self.start.ledger is not None:
            for change in require_same(self.start.ledger, self.identity, self._block, sources):
                _tell(f"the run is resumed with other software than it began with: {change}", logging.WARNING)
            self.start = on_rank_0(lambda: with_last_model(self.run, self.start))
        for line in self.start.passed_over:
            _tell(line)
        if self.start.action.kind == "nothing":
            _tell(f"this run is finished: {self.run.root} holds its final model. Nothing is left to do.")
            raise SystemExit(0)
        source = self.start.checkpoint or self.start.model_dir
        if source is not None:
            require_seen_by_all(source, "the run is resumed from", self.run.root)
        self._redirect()

    @property
    def is_redirected(self) -> bool:
        """Whether the host loads a model of this run in place of the base model."""
        return self._base is not None

    def model_is_loaded(self) -> None:
        """The host has loaded what ``open`` set; the config says again what the user wrote."""
        if self._base is not None and self._cfg.base_model != self._base[0]:
            self._cfg.base_model, self._cfg.base_model_config = self._base

    def has_begun(self) -> None:
        """The ledger is on disk: whatever ends this process, the run can be resumed."""
        can_be_resumed(self.run)

    def has_come_further(self) -> None:
        """First: the chain is run. Then: the host has written the final model, and the run is closed."""
        if self._is_trained and self._lock is not None:  # rank 0; the process group is gone
            close_run(self.run, keep_last=self._block.export_steps == "all")
            tell_the_end(self.run)
        if self._is_trained:
            can_be_resumed(None)
        self._is_trained = True

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

    def _decide(self, wanted: Wanted) -> Start:
        if self._lock is None:
            with explaining_write_errors(self.run.lock):
                self._lock = RunLock(self.run.lock)
        asked = self._cfg.resume_from_checkpoint
        return open_run(self.run, self._names(), wanted, asked, resumes=self._resumes)

    def _redirect(self) -> None:
        """Let the host load M_{t-1}, or the checkpoint, in place of a base model that would be overwritten at once.

        With an adapter the base model is needed; so it is with `policy_init: base`, while there are steps to train.
        """
        checkpoint = self.start.checkpoint
        if checkpoint is not None and not (checkpoint / CONFIG_NAME).exists():
            return  # FSDP2 has saved it in parts, which the host loads into whatever model it has
        source = checkpoint or self.start.model_dir
        trains = self.start.action.kind in ("prepare", "reference", "train")
        if source is None or self._cfg.adapter or (trains and self._block.policy_init == "base"):
            return
        self._base = (self._cfg.base_model, self._cfg.base_model_config)
        self._cfg.base_model = self._cfg.base_model_config = str(source)


def describe(start: Start) -> str:
    """The start in words, for the log."""
    step = f"step {start.action.step}" if start.action.step else "the end"
    if start.checkpoint is not None:
        return f"resuming {step} from {start.checkpoint}"
    return f"resuming {step} from {start.action.model}, next: {start.action.kind}"


def _tell(text: str, level: int = logging.INFO) -> None:
    if is_main_process():
        LOG.log(level, text)
