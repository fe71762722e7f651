"""Preference data through the host's own loaders and chat templates: each source as an `rl: dpo` config of its own."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta, load_preference_datasets
from axolotl.utils.data import shared
from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.drawing import draw
from sdpo_plugin.host.data.heldout import HeldoutSets, named_after
from sdpo_plugin.host.data.histories import other_prompts
from sdpo_plugin.host.data.local_data import CONTENT, address
from sdpo_plugin.host.data.prepared import Prepared, RawNote, RawReader, raw_parts
from sdpo_plugin.host.data.rated import RatedReader, prepared_apart, require_one_rating, unrated
from sdpo_plugin.host.data.read_errors import explained, require_no_null_text, source_name
from sdpo_plugin.host.data.step_cfg import describe_settings, source_cfg_of
from sdpo_plugin.host.engines.tokenizer import all_have_read_it, tokenizer_of
from sdpo_plugin.host.patches import loading_through
from sdpo_plugin.pair_checks import NOT_LOOKED_AT, Found
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.steps_args import StepArgs, step_names

LOG = logging.getLogger("axolotl.sdpo_plugin")
MEASURED_BY = ("sequence_len", "dpo_ld_alpha")  # what a step may set that changes rows or their log-probs


@dataclass(frozen=True)
class LoadedSource:
    """One entry of `datasets:`, or one of `sdpo.steps`, as the host loads it; rows are texts.

    Attributes:
        cfg: the config of this source alone: what a separate `rl: dpo` run would be given.
        train: rows to train on.
        heldout: its held-out sets by name; the trainer evaluates on all of them together.
        num_dropped: rows that are in neither; None where that is not known.
        total_num_steps: optimizer steps by the host's count.
        settings: the host keys that the source sets for itself.
        is_awaited: `sdpo.before_step` makes the rows, and has not yet: there are none.
        num_left_out: rows that `sdpo.partition` has not drawn into its pool.
        other_prompts: rows of its files whose answers are to different prompts, as far as that is known.
    """

    name: str
    cfg: DictDefault
    train: Dataset
    heldout: Mapping[str, Dataset]
    num_dropped: int | None
    total_num_steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_awaited: bool = False
    num_left_out: int = 0
    other_prompts: Found = NOT_LOOKED_AT


def flatten_steps(cfg: DictDefault, block: SDPOConfig) -> None:
    """Put the data sets of `sdpo.steps` into `datasets:`, in order, so that the host validates and normalizes them.

    Rows that a hook makes are not among them: `axolotl evaluate` loads all that is there.
    """
    if block.steps is not None:
        cfg["datasets"] = [entry for step in block.steps for entry in step.datasets or []]


def load_sources(cfg: DictDefault, block: SDPOConfig, made: Collection[str] = ()) -> list[LoadedSource]:
    """Load every source, through the host's prepared-dataset cache; of a pool that is drawn the rows that it keeps.

    Args:
        cfg: the host's config.
        block: the `sdpo:` block.
        made: names of the steps whose rows a hook has made already.

    Raises:
        ConfigError: a step contradicts itself or what is supported; a pool that is drawn takes no row of a source.
        DataError: a step that cannot be read, is not preference data, or has no row left.
    """
    steps = block.steps or [StepArgs(datasets=[dict(entry)]) for entry in cfg.datasets]
    names = _names(block, steps)
    cfgs, first = [], 0
    for name, step in zip(names, steps, strict=True):
        own_entries = cfg.datasets[first : first + len(step.datasets or [])]
        first += len(own_entries)
        cfgs.append(source_cfg_of(name, cfg, step, own_entries or [DictDefault(entry) for entry in step.entries]))
    there = [_made_entries(name, c) if name in made else [] for name, c in zip(names, cfgs, strict=True)]
    wanted = [
        (kept if step.from_hook else source_cfg.datasets, source_cfg.test_datasets or [])
        for step, source_cfg, kept in zip(steps, cfgs, there, strict=True)
    ]
    addressed = iter(address([entry for lists in wanted for entries in lists for entry in entries]))
    column = None if block.partition is None else block.partition.column
    known = HeldoutSets([name for name, source_cfg in zip(names, cfgs, strict=True) if source_cfg.val_set_size])
    loaded, tokenizer = [], tokenizer_of(cfg)
    for name, step, source_cfg, lists in zip(names, steps, cfgs, wanted, strict=True):
        own, held = (list(islice(addressed, len(entries))) for entries in lists)
        data = _load_source(name, source_cfg, tokenizer, own, held, known, column)
        loaded.append(replace(data, settings=describe_settings(step)))
    return draw(block, loaded)


def _names(block: SDPOConfig, steps: Sequence[StepArgs]) -> list[str]:
    """Those of the steps; sources that are cut into steps are called after their files, since none is a step."""
    names = step_names(steps)
    if block.partition is None or block.partition.strategy == "natural" or block.steps is not None:
        return names
    found: list[str] = []
    for step, otherwise in zip(steps, names, strict=True):
        found.append(named_after(step.entries[0], found, otherwise))
    return found


def load_made_rows(name: str, cfg: DictDefault) -> LoadedSource:
    """The rows that `sdpo.before_step` has just made, as ``load_sources`` loads them when the run is resumed.

    Args:
        name: of the step.
        cfg: of its source, which was loaded without them.

    Raises:
        DataError: they cannot be read, are no preference data, or none is left.
    """
    return _load_rows(name, cfg, tokenizer_of(cfg), address(_made_entries(name, cfg)))


def _made_entries(name: str, cfg: DictDefault) -> list[DictDefault]:
    """The entries of a step whose rows a hook has made, as they are read: out of the run directory."""
    kept = {"path": str(RunDir(Path(cfg.output_dir)).made_rows_of(name)), "ds_type": "json", "split": "train"}
    return [DictDefault({**entry, **kept}) for entry in cfg.datasets]


def _load_source(
    name: str,
    cfg: DictDefault,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[DictDefault],
    held: Sequence[DictDefault],
    known: HeldoutSets,
    column: str | None,
) -> LoadedSource:
    """One step with its held-out rows.

    Args:
        name: of the step.
        cfg: its config alone.
        tokenizer: of the run.
        entries: its data sets, addressed by content; none where a hook has still to make them.
        held: its held-out entries likewise.
        known: held-out sets that steps before it have loaded.
        column: of the data, which rates its rows.
    """
    awaited = LoadedSource(name, cfg, Dataset.from_dict({}), {}, None, 0, is_awaited=True)
    source = _load_rows(name, cfg, tokenizer, entries, column) if entries else awaited
    heldout = dict(source.heldout)
    for entry, addressed in zip(cfg.test_datasets or [], held, strict=True):
        # Steps that cut or weigh its rows otherwise mean other log-probs, and so another set.
        alike = {**entry, **{key: cfg[key] for key in MEASURED_BY}}
        test_name = known.find(alike)
        if test_name is None:
            test_name = known.add(alike, _load_test_entry(name, cfg, tokenizer, addressed), name)
            if is_main_process():
                LOG.info("held-out set %s: test_datasets: %s", test_name, source_name(entry))
        heldout[test_name] = known.sets[test_name][1]
    return replace(source, heldout=heldout)


def _load_rows(
    name: str,
    cfg: DictDefault,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[DictDefault],
    column: str | None = None,
) -> LoadedSource:
    """The rows of one step, with those of its own that it holds out."""
    train_cfg = _for_rows(cfg, entries)
    train_cfg.val_set_size = cfg.val_set_size
    sources = ", ".join(source_name(entry) for entry in entries)
    if column is not None:
        prepared_apart(train_cfg, column)
    meta, raw = _load(name, train_cfg, tokenizer, column=column)
    if column is not None and cfg.dataset_exact_deduplication:
        require_one_rating([meta.train_dataset, *filter(None, [meta.eval_dataset])], column, f"step {name}: {sources}")
    heldout = {} if meta.eval_dataset is None else {name: unrated(meta.eval_dataset)}
    if meta.eval_dataset is not None and not len(meta.eval_dataset):
        raise DataError(
            f"step {name}: held-out set {name} has no rows (sequence_len: {cfg.sequence_len} drops longer "
            "ones); set another source, a larger sequence_len or a larger val_set_size."
        )
    kept = len(meta.train_dataset) + len(meta.eval_dataset or ())
    if not len(meta.train_dataset):
        held = f", {len(meta.eval_dataset)} are held out" if meta.eval_dataset else ""
        whole = "its" if raw is None else raw.rows
        seen = "the source is empty" if whole == 0 else f"none of {whole} rows is left for training{held}"
        raise DataError(
            f"step {name}: {sources} has no rows to train on: {seen} "
            f"(sequence_len: {cfg.sequence_len} drops longer rows); set another source or a larger sequence_len."
        )
    dropped, others = (None, NOT_LOOKED_AT) if raw is None else (raw.rows - kept, raw.other_prompts)
    return LoadedSource(name, cfg, meta.train_dataset, heldout, dropped, meta.total_num_steps, other_prompts=others)


def _for_rows(cfg: DictDefault, entries: Sequence[DictDefault]) -> DictDefault:
    """The config under which the host loads these entries and nothing else."""
    alone = copy.copy(cfg)
    alone.datasets, alone.test_datasets, alone.val_set_size = list(entries), None, 0.0
    return alone


def _load(
    step: str, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, label: str = "", column: str | None = None
) -> tuple[TrainDatasetMeta, RawNote | None]:
    """Load ``cfg.datasets`` through the host; with what is known of the rows before it dropped any."""
    reader = RawReader(cfg) if column is None else RatedReader(cfg, column, step)
    with explained(step, cfg, tokenizer, label), loading_through(reader.load, column):
        prepared = Prepared(cfg, tokenizer.name_or_path)
        prepared.clear_torn()
        meta = load_preference_datasets(cfg=cfg)
        all_have_read_it(cfg)
        raw = prepared.raw_note()
        if raw is None and all(CONTENT in entry for entry in cfg.datasets):  # else far away: not worth another download
            parts = reader.parts or list(raw_parts(cfg))  # prepared by another rank, or by a run that died after it
            require_no_null_text(step, cfg, tokenizer, parts, label)
            entries = shared.datasets_with_name_generator(cfg.datasets)
            raw = RawNote(sum(map(len, parts)), other_prompts(zip(parts, entries, strict=True)))
            prepared.note(raw)
    return meta, raw


def names_for_cards(cfg: DictDefault) -> list[str]:
    """The entries of a config that are no directories here, as model cards name them."""
    return [source_name(entry) for entry in cfg.datasets if not Path(entry["path"]).is_dir()]


def _load_test_entry(step: str, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase, entry: DictDefault) -> Dataset:
    """One entry of `test_datasets`, loaded alone and with its own field names, as training data are."""
    label = "test_datasets: "
    meta, _ = _load(step, _for_rows(cfg, [entry]), tokenizer, label)
    rows = meta.train_dataset
    if not len(rows):
        raise DataError(
            f"step {step}: {label}{source_name(entry)} cannot be read as preference data: no row is left to evaluate "
            f"on (sequence_len: {cfg.sequence_len} drops longer rows). Set another source or a larger sequence_len."
        )
    return rows
