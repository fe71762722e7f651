"""The files that local data are read from."""

from pathlib import Path

import pytest

from sdpo_plugin.local_files import local_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "sub/a.jsonl", ".hidden", "cache-1f.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    return tmp_path


def test_a_file_is_itself(folder: Path) -> None:
    assert local_files(str(folder / "b.jsonl")) == [folder / "b.jsonl"]


def test_a_directory_is_what_is_in_it_but_hidden_files_and_what_datasets_has_cached(folder: Path) -> None:
    assert local_files(str(folder)) == [folder / "b.jsonl", folder / "sub/a.jsonl"]


def test_a_linked_directory_counts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "c.jsonl").write_text("c", encoding="utf-8")
    (folder / "link").symlink_to(elsewhere)
    assert folder / "link/c.jsonl" in local_files(str(folder))


def test_names_and_patterns_choose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_files(str(folder), [f"{folder}/**/*.jsonl"]) == [folder / "b.jsonl", folder / "sub/a.jsonl"]
    monkeypatch.chdir(folder)
    assert local_files(str(folder), ["sub/a.jsonl", "https://host/x.jsonl", "x" * 5000]) == [Path("sub/a.jsonl")]


@pytest.mark.parametrize("path", ["", "nobody/nothing", "https://host/x.jsonl", "x" * 5000])
def test_what_is_elsewhere_has_no_files(path: str) -> None:
    assert local_files(path) == []
