"""Refusing a run directory in which the run would write over what it reads. Nothing here writes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.steps_args import step_names

CACHE = "sdpo.reference_cache"


def written_names(block: SDPOConfig, num_sources: int) -> list[str]:
    """The names of the steps that are trained.

    Args:
        block: the `sdpo:` block.
        num_sources: entries of `datasets:`.
    """
    if block.steps is not None:
        return step_names(block.steps)
    args = block.partition
    by_source = args is None or args.strategy == "natural" or (args.strategy == "easy_to_hard" and args.unit != "row")
    count = num_sources if args is None or by_source else len(args.shares())
    return [f"step-{number}" for number in range(1, count + 1)]


def names_in_place(run: RunDir, block: SDPOConfig) -> list[str]:
    """The names in whose places a model may stand already: those of `sdpo.steps`, or all that a run gives by itself."""
    if block.steps is not None:
        return step_names(block.steps)
    return sorted(path.name for path in run.root.glob("step-*") if path.is_dir())


def inputs_of(cfg: Mapping[str, Any], block: SDPOConfig) -> Iterator[tuple[str, str]]:
    """Everything that the run reads, by the key that names it; hub ids and URLs among them."""
    yield "base_model", str(cfg.get("base_model"))
    if cfg.get("lora_model_dir"):
        yield "lora_model_dir", str(cfg.get("lora_model_dir"))
    if block.reference not in ("previous", "base"):
        yield "sdpo.reference", block.reference
    if block.reference_cache is not None:
        yield CACHE, block.reference_cache
    lists = {key: cfg.get(key) for key in ("datasets", "test_datasets")}
    for number, step in enumerate(block.steps or []):
        lists |= {f"sdpo.steps[{number}].{key}": getattr(step, key) for key in ("datasets", "test_datasets")}
    for key, entries in lists.items():
        for number, entry in enumerate(entries or []):
            files = entry.get("data_files") or []
            yield f"{key}[{number}].path", str(entry.get("path"))
            for file in [files] if isinstance(files, str) else files:
                yield f"{key}[{number}].data_files", str(file)


def require_inputs_kept(run: RunDir, names: Sequence[str], cfg: Mapping[str, Any], block: SDPOConfig) -> None:
    """Refuse a run directory in which the run would write over what it reads. Links are followed.

    Everything else in the directory is left alone by the run, and may be read.

    Args:
        run: the run directory.
        names: of the steps that are trained into it.
        cfg: the host's config.
        block: the `sdpo:` block.

    Raises:
        OutputError: a model or data set is the output directory, or lies where a step or the run's records go.
    """
    root = _real(run.root)
    own = {f"step {name}": root / name for name in names} | {"the record of the run": run.folder}
    for key, path in inputs_of(cfg, block):
        made = key == CACHE  # by the first run that looks for it
        if not made and not os.path.exists(path):  # noqa: PTH110 (a path that cannot be one, such as "\x00", is answered with False)
            continue
        real = _real(path)
        if real == root:
            raise OutputError(
                f"{key}: {path!r} is the same directory as output_dir: {str(run.root)!r}, and the run would write over "
                "it; set another output_dir."
            )
        for what, place in own.items():
            if real.is_relative_to(_real(place)):
                raise OutputError(
                    f"{key}: {path!r} lies where {what} is written, {str(place)!r}; set another output_dir, or give "
                    "the step another name."
                )


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # unlike `resolve`, it takes a loop of links as it is
