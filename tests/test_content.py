"""Local data by what they hold."""

import os
from pathlib import Path

import pytest

from sdpo_plugin.content import content_digest, local_files


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
    assert local_files(str(folder), ["sub/a.jsonl", "https://host/x.jsonl"]) == [Path("sub/a.jsonl")]


@pytest.mark.parametrize("path", ["", "nobody/nothing", "https://host/x.jsonl"])
def test_what_is_elsewhere_has_no_files(path: str) -> None:
    assert local_files(path) == []


def test_one_letter_tells_and_time_does_not(folder: Path) -> None:
    path = folder / "b.jsonl"
    before = content_digest([path])
    os.utime(path, (1, 1))
    assert content_digest([path]) == before
    path.write_text("c.jsonl", encoding="utf-8")
    assert content_digest([path]) != before


def test_a_file_larger_than_a_block_counts_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(9_000_000))
    before = content_digest([path])
    path.write_bytes(bytes(8_999_999) + b"\1")
    assert content_digest([path]) != before


def test_where_one_file_ends_and_the_next_begins_tells(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    one.write_text("ab")
    other.write_text("c")
    before = content_digest([one, other])
    one.write_text("a")
    other.write_text("bc")
    assert content_digest([one, other]) != before
