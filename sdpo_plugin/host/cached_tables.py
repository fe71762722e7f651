"""`sdpo.reference_cache`: what a table of this run is known by in other runs. Rank 0 decides; the others are told."""

import logging
import platform
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from axolotl.loaders.utils import load_model_config

import sdpo_plugin
from sdpo_plugin import digests
from sdpo_plugin.errors import OutputError, ReferenceTableError
from sdpo_plugin.host.engines import ranks
from sdpo_plugin.host.engines.weights import owned, trainable, whole_size
from sdpo_plugin.host.forward.passes import Passes
from sdpo_plugin.host.identity import model_files, plain
from sdpo_plugin.host.setup import RunSetup
from sdpo_plugin.host.stopping import StopRequest
from sdpo_plugin.plan import M_0
from sdpo_plugin.rows import RowFacts
from sdpo_plugin.run_dir.drift import VERSIONS, run_settings
from sdpo_plugin.run_dir.reference_cache import ReferenceCache, TableKey
from sdpo_plugin.run_dir.sealed import read_seal
from sdpo_plugin.steps_args import step_names
from sdpo_plugin.tables import LogProbTable

if TYPE_CHECKING:
    from trl import DPOTrainer  # not imported yet when this module is: compat.py says why

LOG = logging.getLogger("axolotl.sdpo_plugin")
WEIGHTS = (".safetensors", ".bin")
MODEL = re.compile("M_[0-9]+")  # a name that no external reference has: args.py


def passes_of(trainer: "DPOTrainer", setup: RunSetup, stop: StopRequest) -> Passes:
    """The passes of a run, with the tables that need not be made again."""
    return Passes(trainer, stop, CachedTables(trainer, setup).table)


class CachedTables:
    """Reads tables that an earlier run has made, and keeps those of this one, where the config asks for that.

    Args:
        trainer: holds the policy.
        setup: config and run directory.
    """

    def __init__(self, trainer: "DPOTrainer", setup: RunSetup) -> None:
        folder = setup.block.reference_cache
        self._trainer, self._setup = trainer, setup
        self._cache = None if folder is None else ReferenceCache(Path(folder))
        self._of_files: dict[str, str] = {}
        if self._cache is not None and not _has_embeddings_of_base(trainer, setup):
            self._cache = None

    def table(
        self,
        model: str,
        facts: RowFacts,
        what: str,
        settings: Mapping[str, Any],
        make: Callable[[], LogProbTable],
    ) -> LogProbTable:
        """The table of these rows under a model.

        Args:
            model: its name, or the path or hub id of an external reference.
            facts: of the rows.
            what: name of the data set, for the log.
            settings: how the pass is made.
            make: makes it.

        Raises:
            ReferenceTableError, Stopped: by ``make``.
        """
        if self._cache is None or (model == M_0 and not self._is_base()):
            return make()
        cache, key = self._cache, ranks.on_rank_0(partial(self._key, model, facts, settings))
        if key is None:
            return make()
        found = ranks.on_rank_0(partial(_read, cache, key, model, what))
        if found is not None:
            return found
        made = make()
        ranks.on_rank_0(partial(_write, cache, key, made))
        return made

    def _key(self, model: str, facts: RowFacts, settings: Mapping[str, Any]) -> TableKey | None:
        weights = self._weights(model)
        return None if weights is None else TableKey(facts.digest(), len(facts), weights, self._settings(settings))

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All but what is known to leave log-probs alone, as of a run that is resumed; and what computes them."""
        cfg = self._setup.cfg
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        return {
            "config": run_settings(plain(cfg)),
            "engine": plain(cfg).get("deepspeed") or plain(cfg).get("fsdp_config"),
            "ranks": ranks.place()[1],
            "device": f"{PartialState().device.type} {device}",
            "versions": {**self._setup.session.identity[VERSIONS], "axolotl-sdpo": sdpo_plugin.__version__},
            **settings,
        }

    def _weights(self, model: str) -> dict[str, Any] | None:
        """What a model is known by; None where that is not at hand."""
        cfg = self._setup.cfg
        base = {"base": self._digest(str(cfg.base_model), cfg.revision_of_model)}
        if model == M_0:
            return base
        if not MODEL.fullmatch(model):
            return {"reference": self._digest(model, None)}
        try:
            sealed = read_seal(self._place(int(model.removeprefix("M_"))))
        except ValueError:
            return None  # its user has deleted it
        files = {name: digest for name, (_, digest) in sealed.files.items() if name.endswith(WEIGHTS)}
        return base | {"weights": files} if sealed.about.get("model") == model else None

    def _place(self, index: int) -> Path:
        """The directory of M_t."""
        steps = self._setup.block.steps
        return self._setup.run.root / (f"step-{index}" if steps is None else step_names(steps)[index - 1])

    def _digest(self, model: str, revision: str | None) -> str:
        """Every byte of a model's files counts: one that differs in a single weight is another one."""
        if model not in self._of_files:
            files = sorted(model_files(model, revision, ("*.safetensors", "*.bin", "*.json", "*.py")))
            self._of_files[model] = digests.of_files(files)
        return self._of_files[model]

    def _is_base(self) -> bool:
        """Whether M_0 gives the log-probs of the base model: an adapter may be drawn so that it does not, or be more.

        A fresh LoRA adapter is A, drawn at random, times B, which is zero. Every rank looks at what it holds.
        """
        if not self._setup.cfg.adapter:
            return True
        zero = all(
            "lora_A" in name or ("lora_B" in name and not bool(owned(parameter).any()))
            for name, parameter in trainable(self._trainer.model)
        )
        return all(ranks.gather([zero]))


def _has_embeddings_of_base(trainer: "DPOTrainer", setup: RunSetup) -> bool:
    """Whether M_0 has the embeddings that stand on disk: for tokens that are added the host draws some at random."""
    there = load_model_config(setup.cfg).get_text_config().vocab_size
    here = whole_size(trainer.model.get_input_embeddings().weight)[0]  # an adapter may stand in the embeddings' place
    if here != there and trainer.accelerator.is_main_process:
        LOG.warning(
            "sdpo.reference_cache is not used: the model has %d embeddings and base_model %d; the others are drawn at "
            "random by each run, and no table of one is another's.",
            here,
            there,
        )
    return bool(here == there)


def _read(cache: ReferenceCache, key: TableKey, model: str, what: str) -> LogProbTable | None:
    try:
        found = cache.read(key, model)
    except ReferenceTableError as error:
        LOG.warning("sdpo.reference_cache: %s: it is not used, and made again.", error)
        return None
    if found is not None:
        LOG.info("log-probs of %s under %s: read from %s", what, model, cache.path(key))
    return found


def _write(cache: ReferenceCache, key: TableKey, table: LogProbTable) -> None:
    """A table that cannot be kept for other runs is no reason to end this one."""
    try:
        cache.write(key, table)
    except OutputError as error:
        LOG.warning("sdpo.reference_cache: %s", error)
