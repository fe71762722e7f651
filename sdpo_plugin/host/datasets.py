"""D_t through the host's own loaders and chat templates: each step is loaded as an `rl: dpo` config of its own."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from axolotl.common.datasets import TrainDatasetMeta, load_preference_datasets
from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from transformers.trainer_utils import SchedulerType

from sdpo_plugin.args import SDPOConfig, StepArgs, step_names
from sdpo_plugin.conflicts import check_losses
from sdpo_plugin.errors import ConfigError, DataError
from sdpo_plugin.host.compat import loading_through
from sdpo_plugin.host.heldout import TestSets
from sdpo_plugin.host.local_data import CONTENT, address, load_raw
from sdpo_plugin.host.prepared import Prepared, raw_parts
from sdpo_plugin.host.read_errors import explained, require_no_null_text
from sdpo_plugin.host.read_errors import source_name as source_name  # its users know it as a part of this module
from sdpo_plugin.reference import ReferenceTable
from sdpo_plugin.rows import RowFacts, facts_of, join

LOG = logging.getLogger("axolotl.sdpo_plugin")
SCHEDULES = ("one_cycle", "rex", *(schedule.value for schedule in SchedulerType))  # the first two are Axolotl's own
IDS = ["prompt_ids", "chosen_ids", "rejected_ids"]
# A step that sets the first key means it instead of the config's second one, which would win in the host.
DISPLACES = {
    "num_epochs": "max_steps",
    "warmup_ratio": "warmup_steps",
    "val_set_size": "test_datasets",
    "test_datasets": "val_set_size",
}


@dataclass(frozen=True)
class StepData:
    """One step as the host loads it.

    Attributes:
        cfg: the config of this step alone: what a separate `rl: dpo` run would be given.
        train: D_t.
        heldout: held-out sets of this step by name; the trainer evaluates on all of them together.
        source_rows: rows that come from each entry of ``cfg.datasets``; empty where the host merged them.
        settings: the host keys that the step sets for itself.
        num_dropped: rows of the sources that are in neither; None where that is not known.
        total_num_steps: optimizer steps by the host's count.
    """

    name: str
    cfg: DictDefault
    train: Dataset
    heldout: dict[str, Dataset]
    num_dropped: int | None
    total_num_steps: int
    source_rows: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    facts: RowFacts | None = None


def flatten_steps(cfg: DictDefault, block: SDPOConfig) -> None:
    """Put the data sets of `sdpo.steps` into `datasets:`, in order, so that the host validates and normalizes them."""
    if block.steps is not None:
        cfg["datasets"] = [entry for step in block.steps for entry in step.datasets]


def load_steps(cfg: DictDefault, block: SDPOConfig) -> list[StepData]:
    """Load every step, through the host's prepared-dataset cache.

    Raises:
        DataError: a step that cannot be read, is not preference data, or has no row left.
    """
    steps = block.steps or [StepArgs(datasets=[dict(entry)]) for entry in cfg.datasets]
    names = step_names(steps)
    cfgs, first = [], 0
    for name, step in zip(names, steps, strict=True):
        cfgs.append(_step_cfg(name, cfg, step, cfg.datasets[first : first + len(step.datasets)]))
        first += len(step.datasets)
    keys = ("datasets", "test_datasets")
    entries = iter(address([entry for step_cfg in cfgs for key in keys for entry in step_cfg[key] or []]))
    tests = TestSets([name for name, step_cfg in zip(names, cfgs, strict=True) if step_cfg.val_set_size])
    loaded = []
    for name, step, step_cfg in zip(names, steps, cfgs, strict=True):
        own, held = (list(islice(entries, len(step_cfg[key] or []))) for key in keys)
        data = _load_step(name, step_cfg, own, held, tests)
        loaded.append(replace(data, settings=describe_settings(step)))
    return loaded


def _step_cfg(name: str, cfg: DictDefault, step: StepArgs, entries: Sequence[DictDefault]) -> DictDefault:
    step_cfg = copy.deepcopy(cfg)
    step_cfg.datasets = list(entries)
    overrides = step.overrides()
    for key in overrides:
        if DISPLACES.get(key) not in overrides:
            step_cfg[DISPLACES.get(key, key)] = None
    for key, value in overrides.items():
        step_cfg[key] = value
    if "val_set_size" not in overrides and step_cfg.val_set_size is None:
        step_cfg.val_set_size = 0.0  # the host's default, and what "no evaluation" is recognised by
    if "num_epochs" in overrides and cfg.saves_per_epoch:
        step_cfg.save_steps = 1.0 / (cfg.saves_per_epoch * step_cfg.num_epochs)
    if "num_epochs" in overrides and cfg.evals_per_epoch:
        step_cfg.eval_steps = 1.0 / (cfg.evals_per_epoch * step_cfg.num_epochs)
    check_losses(f"step {name}", step_cfg)
    if step_cfg.lr_scheduler and step_cfg.lr_scheduler not in SCHEDULES:
        raise ConfigError(
            f"step {name}: lr_scheduler: {step_cfg.lr_scheduler!r} is no schedule of the host's; set one of "
            f"{', '.join(SCHEDULES)}."
        )
    if step_cfg.test_datasets:
        step_cfg.test_datasets = _complete_test_entries(step_cfg.test_datasets, cfg.datasets)
    return step_cfg


def _complete_test_entries(tests: Sequence[Any], pool: Sequence[DictDefault]) -> list[DictDefault]:
    """The host reads field names of test entry i from training entry i; keep that where the test entry is silent."""
    completed = []
    for number, test in enumerate(tests):
        pattern = pool[number] if number < len(pool) else pool[-1]
        fields = {key: value for key, value in pattern.items() if key.startswith("field_") or key == "type"}
        completed.append(DictDefault({**fields, **{k: v for k, v in test.items() if v is not None}}))
    return completed


def _load_step(
    name: str, cfg: DictDefault, entries: Sequence[DictDefault], held: Sequence[DictDefault], tests: TestSets
) -> StepData:
    """One step with its held-out rows.

    Args:
        name: of the step.
        cfg: its config alone.
        entries: its data sets, addressed by content.
        held: its test sets likewise.
        tests: those that steps before it have loaded.
    """
    train_cfg = _for_rows(cfg, entries)
    train_cfg.val_set_size = cfg.val_set_size
    sources = ", ".join(source_name(entry) for entry in entries)
    meta, raw = _load(name, train_cfg)
    heldout = {} if meta.eval_dataset is None else {name: meta.eval_dataset}
    for entry, addressed in zip(cfg.test_datasets or [], held, strict=True):
        test_name = tests.find(entry)
        if test_name is None:
            test_name = tests.add(entry, _load_test_entry(name, cfg, addressed), name)
            if is_main_process():
                LOG.info("held-out set %s: test_datasets: %s", test_name, source_name(entry))
        heldout[test_name] = tests.known[test_name][1]
    for test_name, rows in heldout.items():
        if not len(rows):
            raise DataError(
                f"step {name}: held-out set {test_name} has no rows (sequence_len: {cfg.sequence_len} drops longer "
                "ones); set another source, a larger sequence_len or a larger val_set_size."
            )
    kept = len(meta.train_dataset) + len(meta.eval_dataset or ())
    if not len(meta.train_dataset):
        held = f", {len(meta.eval_dataset)} are held out" if meta.eval_dataset else ""
        seen = "the source is empty" if raw == 0 else f"none of {raw or 'its'} rows is left for training{held}"
        raise DataError(
            f"step {name}: {sources} has no rows to train on: {seen} "
            f"(sequence_len: {cfg.sequence_len} drops longer rows); set another source or a larger sequence_len."
        )
    dropped = None if raw is None else raw - kept
    return StepData(name, cfg, meta.train_dataset, heldout, dropped, meta.total_num_steps)


def _for_rows(cfg: DictDefault, entries: Sequence[DictDefault]) -> DictDefault:
    """The config under which the host loads these entries and nothing else."""
    alone = copy.copy(cfg)
    alone.datasets, alone.test_datasets, alone.val_set_size = list(entries), None, 0.0
    return alone


def _load(step: str, cfg: DictDefault, label: str = "") -> tuple[TrainDatasetMeta, int | None]:
    """What the host makes of ``cfg.datasets``, and how many rows it made it of; None where that is not known."""
    with explained(step, cfg, label), loading_through(load_raw):
        prepared = Prepared(cfg, load_tokenizer(cfg).name_or_path)
        prepared.clear_torn()
        meta = load_preference_datasets(cfg=cfg)
        raw = prepared.num_raw_rows()
        if raw is None and all(CONTENT in entry for entry in cfg.datasets):  # else far away: not worth another download
            parts = list(raw_parts(cfg))
            require_no_null_text(step, cfg, parts, label)
            raw = sum(map(len, parts))
            prepared.note_raw_rows(raw)
    return meta, raw


def describe_settings(step: StepArgs) -> dict[str, Any]:
    """The overrides of a step, for plan and report."""
    overrides = step.overrides()
    if "test_datasets" in overrides:
        overrides["test_datasets"] = [source_name(entry) for entry in overrides["test_datasets"]]
    return overrides


def _load_test_entry(step: str, cfg: DictDefault, entry: DictDefault) -> Dataset:
    """One entry of `test_datasets`, loaded alone and with its own field names, as training data are."""
    label = "test_datasets: "
    meta, _ = _load(step, _for_rows(cfg, [entry]), label)
    rows = meta.train_dataset
    if not len(rows):
        raise DataError(
            f"step {step}: {label}{source_name(entry)} cannot be read as preference data: no row is left to evaluate "
            f"on (sequence_len: {cfg.sequence_len} drops longer rows). Set another source or a larger sequence_len."
        )
    return rows


def row_facts(dataset: Dataset) -> RowFacts:
    """Keys and lengths of all rows, in one pass over the memory-mapped columns."""
    parts = []
    for batch in dataset.select_columns(IDS).with_format("arrow").iter(1000):
        columns = [batch.column(name).combine_chunks() for name in IDS]
        parts.append(
            facts_of([(_integers(column.flatten()), _integers(pc.list_value_length(column))) for column in columns])
        )
    return join(parts)


def _integers(array: pa.Array) -> NDArray[np.int64]:
    values: NDArray[np.int64] = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def with_reference(dataset: Dataset, table: ReferenceTable) -> Dataset:
    """The data set with the columns that TRL's loss reads the reference from."""
    return dataset.add_column("ref_chosen_logps", table.chosen).add_column("ref_rejected_logps", table.rejected)


def together(datasets: Sequence[Dataset]) -> Dataset | None:
    """All rows of several prepared sets, or None where there are none."""
    return concatenate_datasets(list(datasets)) if datasets else None
