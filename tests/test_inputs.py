"""Inputs that a run would overwrite are refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.inputs import names_in_place, require_inputs_kept, written_names
from sdpo_plugin.run_dir.paths import RunDir

ENTRY = {"path": "x.jsonl"}


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ({}, ["step-1", "step-2", "step-3"]),
        ({"steps": [{"name": "a", "datasets": [ENTRY]}, {"datasets": [ENTRY]}]}, ["a", "step-2"]),
        ({"partition": {"strategy": "natural"}}, ["step-1", "step-2", "step-3"]),
        ({"partition": {"strategy": "easy_to_hard"}}, ["step-1", "step-2", "step-3"]),
        ({"partition": {"strategy": "easy_to_hard", "unit": "row", "num_steps": 2}}, ["step-1", "step-2"]),
        ({"partition": {"strategy": "random", "fractions": [0.2, 0.8]}}, ["step-1", "step-2"]),
        ({"partition": {"strategy": "stratified", "num_steps": 1}}, ["step-1"]),
    ],
    ids=lambda part: str(part)[:60],
)
def test_names_that_are_written(block: dict[str, Any], names: list[str]) -> None:
    assert written_names(parse_block(block), num_sources=3) == names


def test_names_in_whose_places_a_model_may_stand(run_dir: RunDir) -> None:
    for name in ("step-1", "step-7", "other"):
        (run_dir.root / name).mkdir(parents=True)
    assert names_in_place(run_dir, parse_block({})) == ["step-1", "step-7"]
    assert names_in_place(run_dir, parse_block({"steps": [{"name": "a", "datasets": [ENTRY]}]})) == ["a"]


def keep(run: RunDir, block: dict[str, Any] | None = None, **cfg: Any) -> None:
    parsed = parse_block(block or {})
    require_inputs_kept(run, ["step-1", "orca"], {"datasets": [ENTRY], **cfg}, parsed)


def directory(path: Path) -> str:
    path.mkdir(parents=True)
    return str(path)


def refusal(run: RunDir, block: dict[str, Any] | None = None, **cfg: Any) -> str:
    with pytest.raises(OutputError) as caught:
        keep(run, block, **cfg)
    return str(caught.value)


def test_base_model_is_the_output_directory(run_dir: RunDir) -> None:
    path = directory(run_dir.root)
    assert refusal(run_dir, base_model=path) == (
        f"base_model: {path!r} is the same directory as output_dir: {path!r}, and the run would write over it; set "
        "another output_dir."
    )


def test_base_model_in_the_place_of_a_step(run_dir: RunDir) -> None:
    path = directory(run_dir.root / "orca")
    assert refusal(run_dir, base_model=path) == (
        f"base_model: {path!r} lies where step orca is written, {path!r}; set another output_dir, or give the step "
        "another name."
    )


@pytest.mark.parametrize("inside", ["step-1/checkpoint-5", "sdpo/start", "sdpo"])
def test_base_model_inside_of_what_is_written(run_dir: RunDir, inside: str) -> None:
    path = directory(run_dir.root / inside)
    assert refusal(run_dir, base_model=path).startswith(f"base_model: {path!r} lies where ")


def test_links_are_followed(run_dir: RunDir, tmp_path: Path) -> None:
    real = directory(tmp_path / "disk" / "model")
    run_dir.root.symlink_to(tmp_path / "disk")
    (run_dir.root / "orca").symlink_to(real)
    assert f"base_model: {real!r} lies where step orca is written" in refusal(run_dir, base_model=real)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk")
    assert "is the same directory as output_dir" in refusal(run_dir, base_model=str(link))


def test_relative_path(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    directory(run_dir.root)
    monkeypatch.chdir(run_dir.root.parent)
    assert refusal(run_dir, base_model="./out/../out").startswith("base_model: './out/../out' is the same directory")


def test_reference_is_an_input(run_dir: RunDir) -> None:
    path = directory(run_dir.root / "step-1")
    assert refusal(run_dir, {"reference": path}).startswith(f"sdpo.reference: {path!r} lies where step step-1")


def test_cache_is_none_of_the_records_before_it_is_made(run_dir: RunDir) -> None:
    """The first run makes it, and the second one would be refused."""
    path = str(run_dir.folder / "cache")
    assert refusal(run_dir, {"reference_cache": path}).startswith(
        f"sdpo.reference_cache: {path!r} lies where the record of the run is written"
    )
    keep(run_dir, {"reference_cache": str(run_dir.root / "cache")})


@pytest.mark.parametrize("key", ["datasets", "test_datasets"])
def test_data_are_inputs(run_dir: RunDir, key: str) -> None:
    path = directory(run_dir.root / "orca")
    entries = [{"path": "org/set"}, {"path": path}]
    assert refusal(run_dir, **{key: entries}).startswith(f"{key}[1].path: {path!r} lies where step orca")
    file = Path(path, "a.jsonl")
    file.touch()
    entry = {"path": "json", "data_files": [str(file)]}
    assert refusal(run_dir, **{key: [entry]}).startswith(f"{key}[0].data_files: {str(file)!r} lies where step orca")
    block = {"steps": [{"datasets": [ENTRY]}, {"datasets": [ENTRY], key: [{"path": str(file)}]}]}
    assert refusal(run_dir, block).startswith(f"sdpo.steps[1].{key}[0].path: {str(file)!r} lies where step orca")


def test_directory_of_data_is_the_output_directory(run_dir: RunDir) -> None:
    path = directory(run_dir.root)
    assert "datasets[0].path" in refusal(run_dir, datasets=[{"path": path}])


def test_inputs_that_lie_elsewhere_in_the_output_directory(run_dir: RunDir, tmp_path: Path) -> None:
    """The run leaves them alone; hub ids and URLs are not paths."""
    base = directory(run_dir.root / "base")
    (run_dir.root / "pairs.jsonl").touch()
    keep(run_dir, {"reference": directory(run_dir.root / "step-10")}, base_model=base)
    keep(run_dir, base_model=str(tmp_path), datasets=[{"path": str(run_dir.root / "pairs.jsonl")}])
    keep(run_dir, {"reference": "org/M_1"}, base_model="org/model", datasets=[{"path": "s3://b/x"}, {}])


@pytest.mark.parametrize("path", ["\x00", "x" * 5000, None, 3])
def test_what_is_no_path_is_the_hosts_to_refuse(run_dir: RunDir, path: Any) -> None:
    keep(run_dir, base_model=path, datasets=[{"path": path}])


def test_loop_of_links_is_no_model(run_dir: RunDir) -> None:
    run_dir.root.mkdir()
    os.symlink(run_dir.root / "loop", run_dir.root / "loop")  # noqa: PTH211
    keep(run_dir, base_model=str(run_dir.root / "loop"))
