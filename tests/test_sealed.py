"""A sealed directory is used whole, as it was sealed, by the run it belongs to, or not at all."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import OutputError
from sdpo_plugin.run_dir.sealed import SEAL, Seal, flaw, names_in, publish, read_seal, remove, seal, written
from tests.fakes import each_cut, each_flipped_bit, with_digest
from tests.faults import Counter, before_each_operation

ABOUT = {"run": "r1", "step": "step-2", "reference": "f" * 64}
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": bytes(range(256)) * 9,
    "empty": b"",
    "state/rank-0.pt": b"zero",
    "state/deep/rank-1.pt": b"one",
}


class StoppedError(Exception):
    """Raised where an operation is interrupted."""


def fill(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = fill(tmp_path / "checkpoint-5")
    seal(directory, ABOUT, {"first_loss": 0.1 + 0.2})
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def forge(directory: Path, **changes: Any) -> None:
    """A seal whose own digest fits."""
    content = {**json.loads((directory / SEAL).read_bytes()), **changes}
    (directory / SEAL).write_text(with_digest(content))


# --- what is whole ---


def test_seal_lists_every_file_with_size_and_digest(sealed: Path) -> None:
    found = read_seal(sealed)
    assert (found.about, found.facts) == (ABOUT, {"first_loss": 0.30000000000000004})
    assert {name: size for name, (size, _) in found.files.items()} == {name: len(data) for name, data in FILES.items()}
    # XXH3 of 128 bits of the empty input, from the specification's test vectors
    assert found.files["empty"] == (0, "99aa06d3014798d86001c324468d497f")
    assert list(found.files) == sorted(FILES)


def test_digest_that_seal_returns_is_the_seals_own(tmp_path: Path) -> None:
    digest = seal(fill(tmp_path / "a"), ABOUT)
    assert digest == read_seal(tmp_path / "a").digest
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_digest_tells_files_about_and_facts_apart(tmp_path: Path) -> None:
    digests = {
        seal(fill(tmp_path / "a"), ABOUT),
        seal(fill(tmp_path / "b"), {**ABOUT, "run": "r2"}),
        seal(fill(tmp_path / "c"), ABOUT, {"seconds": 1.0}),
        seal(fill(tmp_path / "d", {**FILES, "empty": b"."}), ABOUT),
        seal(fill(tmp_path / "e", {**FILES, "more": b""}), ABOUT),
    }
    assert len(digests) == 5
    assert seal(fill(tmp_path / "f"), ABOUT) in digests


def test_files_that_others_have_written_are_not_read_again(tmp_path: Path) -> None:
    """What they say of a file is what the seal says; the rest is put on disk and digested here."""
    directory = fill(tmp_path / "sealed")
    others = ["config.json", "state/rank-0.pt"]
    known = written(directory, others)
    for name in others:
        (directory / name).write_bytes(b"changed")
    seal(directory, ABOUT, known=known)
    sealed = read_seal(directory).files
    assert list(sealed) == names_in(directory) == sorted(FILES)
    assert {name: sealed[name] for name in others} == known
    assert {name: size for name, (size, _) in sealed.items()} == {name: len(data) for name, data in FILES.items()}
    assert flaw(directory, ABOUT) == "config.json has 7 bytes instead of 8"


def test_files_that_are_not_there_are_not_sealed(tmp_path: Path) -> None:
    """A file that went between the reading and the seal."""
    directory = fill(tmp_path / "sealed")
    known = written(directory, names_in(directory))
    (directory / "empty").unlink()
    seal(directory, ABOUT, known=known)
    assert sorted(read_seal(directory).files) == sorted(FILES.keys() - {"empty"})


def test_whole_directory_has_no_flaw(sealed: Path) -> None:
    assert flaw(sealed, ABOUT) is None
    assert flaw(sealed, {}) is None
    assert flaw(sealed, {"run": "r1"}, read_seal(sealed).digest) is None


def test_other_files_do_not_count(sealed: Path) -> None:
    (sealed / "added.txt").write_text("by the user")
    (sealed / "checkpoint-7").mkdir()
    assert flaw(sealed, ABOUT) is None


def test_directory_that_was_moved_is_as_good(sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed, tmp_path / "elsewhere" / "x")
    assert flaw(tmp_path / "elsewhere" / "x", ABOUT) is None


def test_directory_can_be_sealed_again(sealed: Path) -> None:
    (sealed / "empty").write_bytes(b"no more")
    seal(sealed, ABOUT)
    assert flaw(sealed, ABOUT) is None
    assert SEAL not in read_seal(sealed).files


def test_empty_directory_can_be_sealed(tmp_path: Path) -> None:
    seal(tmp_path, {})
    assert read_seal(tmp_path).files == {}
    assert flaw(tmp_path, {}) is None


def test_every_file_is_on_disk_before_the_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, synced = fill(tmp_path / "a"), []

    def note(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((os.path.relpath(path, directory), (directory / SEAL).exists()))

    monkeypatch.setattr(os, "fsync", note)
    seal(directory, ABOUT)
    before = [name for name, stands in synced if not stands]
    assert set(before[:-1]) == {*FILES, ".", "..", "state", "state/deep"}
    assert before[-1].startswith(f".{SEAL}.")  # its own temporary file
    assert synced[-1] == (".", True)


# --- what is not ---


@pytest.mark.parametrize("name", [name for name in FILES if name != "empty"])
def test_file_cut_anywhere_is_a_flaw(sealed: Path, name: str) -> None:
    whole = FILES[name]
    for size in {0, 1, len(whole) // 2, len(whole) - 1}:
        (sealed / name).write_bytes(whole[:size])
        assert flaw(sealed, ABOUT) == f"{name} has {size:,} bytes instead of {len(whole):,}"


@pytest.mark.parametrize("name", [name for name in FILES if name != "empty"])
def test_flipped_bit_is_a_flaw(sealed: Path, name: str) -> None:
    whole = FILES[name]
    for place in {0, 1, len(whole) // 2, len(whole) - 1}:
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            (sealed / name).write_bytes(data)
            assert flaw(sealed, ABOUT) == f"{name} has been changed: its digest does not fit the seal"


def test_flipped_bit_beyond_the_first_block_that_is_read_is_a_flaw(tmp_path: Path) -> None:
    whole = bytearray((1 << 20) + 7)
    directory = fill(tmp_path / "a", {"big": bytes(whole)})
    seal(directory, {})
    whole[-3] ^= 4
    (directory / "big").write_bytes(whole)
    assert flaw(directory, {}) == "big has been changed: its digest does not fit the seal"


def test_longer_file_is_a_flaw(sealed: Path) -> None:
    with (sealed / "empty").open("ab") as file:
        file.write(b"x" * 1234)
    assert flaw(sealed, ABOUT) == "empty has 1,234 bytes instead of 0"


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_a_flaw(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    assert flaw(sealed, ABOUT) == f"{name} is missing"
    (sealed / name).mkdir()
    assert flaw(sealed, ABOUT) == f"{name} is missing"


@pytest.mark.parametrize("key", list(ABOUT))
def test_foreign_directory_is_a_flaw(sealed: Path, key: str) -> None:
    asked = {**ABOUT, key: "mine"}
    assert flaw(sealed, asked) == f"it belongs to another {key} ({ABOUT[key]!r} instead of 'mine')"


def test_directory_that_does_not_say_whose_it_is_is_a_flaw(sealed: Path) -> None:
    assert flaw(sealed, {"model": "M_1"}) == "it belongs to another model (None instead of 'M_1')"


def test_other_directory_of_the_same_run_is_a_flaw(sealed: Path) -> None:
    assert flaw(sealed, ABOUT, "0" * 64) == "it is not the one that the ledger vouches for"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_what_was_never_finished_is_a_flaw(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """No directory, one without a seal, a file in its place."""
    make(tmp_path / "checkpoint-1")
    assert flaw(tmp_path / "checkpoint-1", {}) == "it has no seal, so it was never finished"


def test_every_flipped_bit_of_the_seal_is_a_flaw_or_changes_nothing(tmp_path: Path) -> None:
    """A flip that changes nothing writes the same number in another way."""
    directory = fill(tmp_path / "a", {"w": b"x"})
    digest, same = seal(directory, {"run": "r1"}, {"loss": 0.1 + 0.2}), set()
    before = read_seal(directory)
    for data in each_flipped_bit(directory / SEAL):
        found = flaw(directory, {"run": "r1"}, digest)
        if found is None:
            assert read_seal(directory) == before
            same.add(re.findall(rb'"loss": (\S+)', data)[0])
        else:
            assert found.startswith("its seal is damaged (")
    assert same == {b"0.30000000000000005", b"0.30000000000000006"}


def test_seal_cut_anywhere_is_a_flaw(sealed: Path) -> None:
    for size in each_cut(sealed / SEAL):
        assert str(flaw(sealed, ABOUT)).startswith("its seal is damaged ("), size


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{}", '{"digest": "x"}'])
def test_json_that_is_no_seal_is_a_flaw(sealed: Path, content: str) -> None:
    (sealed / SEAL).write_text(content)
    assert str(flaw(sealed, ABOUT)).startswith("its seal is damaged (")


def test_seal_of_another_schema_version_is_a_flaw(sealed: Path) -> None:
    forge(sealed, schema_version=2)
    assert flaw(sealed, ABOUT) == "its seal is damaged (another schema version)"


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/w", "state/../../w", ".."])
def test_seal_that_names_files_outside_of_its_directory_is_a_flaw(sealed: Path, name: str) -> None:
    outside = sealed.parent / "w"
    outside.write_text("not the seal's")
    forge(sealed, files={name: [14, "0" * 32]})
    assert flaw(sealed, ABOUT) == f"its seal is damaged (files: {name!r} is no path below its directory)"
    remove(sealed)
    assert outside.exists()
    assert set(contents(sealed)) == {*FILES, SEAL}


def test_forged_seal_is_read_as_it_is_written(sealed: Path) -> None:
    """Or the refusals of forged ones above would prove nothing."""
    forge(sealed, facts={})
    assert read_seal(sealed).facts == {}
    assert flaw(sealed, ABOUT) is None
    assert isinstance(read_seal(sealed), Seal)


# --- removal and publication ---


def test_removal_takes_what_the_seal_lists_and_nothing_else(sealed: Path) -> None:
    fill(sealed, {"mine.txt": b"a", "checkpoint-3/w": b"b"})
    remove(sealed)
    assert contents(sealed) == {"mine.txt": b"a", "checkpoint-3/w": b"b"}
    remove(sealed)  # nothing to do


def test_card_may_be_edited_and_goes_with_its_model(tmp_path: Path) -> None:
    """No seal holds it; one deeper in the directory is a file like any other."""
    directory = fill(tmp_path / "step-1", FILES | {"README.md": b"a card", "state/README.md": b"notes"})
    seal(directory, ABOUT)
    assert set(read_seal(directory).files) == {*FILES, "state/README.md"}
    (directory / "README.md").write_bytes(b"a better card")
    assert flaw(directory, ABOUT) is None
    (directory / "state/README.md").write_bytes(b"other")
    assert flaw(directory, ABOUT) == "state/README.md has been changed: its digest does not fit the seal"
    remove(directory)
    assert not directory.exists()


def test_removal_does_not_follow_links(sealed: Path, tmp_path: Path) -> None:
    """A folder that is one leads to another's files; a file that is one goes, and not what it leads to."""
    shutil.move(sealed / "state", tmp_path / "state")
    (sealed / "state").symlink_to(tmp_path / "state")
    (sealed / "empty").unlink()
    (sealed / "empty").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").touch()
    remove(sealed)
    assert contents(tmp_path / "state") == {"rank-0.pt": b"zero", "deep/rank-1.pt": b"one"}
    assert (tmp_path / "victim").exists()
    assert [path.name for path in sealed.iterdir()] == ["state"]


def test_directory_that_is_a_link_is_not_removed_or_written_through(sealed: Path, tmp_path: Path) -> None:
    link, before = tmp_path / "link", contents(sealed)
    link.symlink_to(sealed)
    remove(link)
    staging = fill(tmp_path / "staging")
    seal(staging, ABOUT)
    with pytest.raises(
        OutputError, match=re.escape(f"{link} is a symbolic link to {sealed}, and a run writes nothing")
    ):
        publish(staging, link)
    assert contents(sealed) == before
    assert link.is_symlink()


@pytest.mark.parametrize("name", [SEAL, "state", "folder"])
def test_removal_by_an_odd_seal_ends(sealed: Path, name: str) -> None:
    (sealed / "folder").mkdir()
    forge(sealed, files={name: [1, "0" * 32], "config.json": [8, "0" * 32]})
    remove(sealed)
    assert not (sealed / "config.json").exists()
    assert (sealed / "state" / "rank-0.pt").exists()


@pytest.mark.parametrize("size", [-1, 2**64, "9", 1.5, None, True], ids=repr)
def test_size_that_is_none_is_a_flaw(sealed: Path, size: object) -> None:
    forge(sealed, files={"empty": [size, "0" * 32]})
    assert str(flaw(sealed, ABOUT)).startswith(f"its seal is damaged (files.empty.0 is {size!r}: Input should be ")


def test_shallow_look_compares_sizes_alone(sealed: Path) -> None:
    (sealed / "config.json").write_bytes(b'{"a": 2}')
    assert flaw(sealed, ABOUT, deep=False) is None
    assert flaw(sealed, ABOUT) == "config.json has been changed: its digest does not fit the seal"
    (sealed / "config.json").write_bytes(b"{}")
    assert flaw(sealed, ABOUT, deep=False) == "config.json has 2 bytes instead of 8"


def test_directory_without_a_seal_is_not_touched(tmp_path: Path) -> None:
    directory = fill(tmp_path / "a")
    remove(directory)
    assert contents(directory) == FILES


def test_published_directory_is_whole_beside_what_stood_there(tmp_path: Path) -> None:
    staging, target = fill(tmp_path / "staging"), fill(tmp_path / "step-2", {"checkpoint-3/w": b"b"})
    digest = seal(staging, ABOUT)
    publish(staging, target)
    assert not staging.exists()
    assert flaw(target, ABOUT, digest) is None
    assert set(contents(target)) == {*FILES, SEAL, "checkpoint-3/w"}


def test_published_directory_replaces_the_one_before_it_entirely(tmp_path: Path) -> None:
    target = fill(tmp_path / "step-2", {**FILES, "model-2-of-2": b"gone", "old/x": b"gone"})
    seal(target, {"model": "M_1"})
    (target / "mine.txt").write_bytes(b"stays")
    seal(fill(tmp_path / "staging"), {"model": "M_2"})
    publish(tmp_path / "staging", target)
    assert set(contents(target)) == {*FILES, SEAL, "mine.txt"}
    assert flaw(target, {"model": "M_2"}) is None


def interrupt() -> None:
    raise StoppedError


def half(after: Path) -> bool:
    """Whether a reader would take half a model for a model."""
    return (after / "config.json").exists() and flaw(after, {}) is not None


def test_publication_interrupted_anywhere_can_be_repeated(tmp_path: Path) -> None:
    """Over an older model: no reader ever meets a mixture, and a new export afterwards is whole."""
    number, done = 0, False
    while not done:
        number += 1
        place = tmp_path / str(number)
        target = fill(place / "step-2", {"config.json": b"old", "old.bin": b"old", "old/x": b"old"})
        seal(target, {"model": "M_2"})
        fill(target, {"mine": b"of the user"})
        seal(fill(place / "staging"), {"model": "M_2"})
        try:
            with before_each_operation(Counter(number, interrupt)):
                publish(place / "staging", target)
            done = True
        except StoppedError:
            assert not half(target)
            shutil.rmtree(place / "staging", ignore_errors=True)  # as the next process does
            digest = seal(fill(place / "staging"), {"model": "M_2"})
            publish(place / "staging", target)
            assert flaw(target, {}, digest) is None
        assert set(contents(target)) == {*FILES, SEAL, "mine"}
    # mkdir, 3 old files, 1 of them in a folder that goes, the old seal, 5 new names, 2 fsyncs, rmdir
    assert number > 12


def test_removal_interrupted_anywhere_can_be_repeated(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        number += 1
        target = fill(tmp_path / str(number))
        seal(target, ABOUT)
        try:
            with before_each_operation(Counter(number, interrupt)):
                remove(target)
            done = True
        except StoppedError:
            assert not half(target)
            remove(target)
        assert contents(target) == {}
        assert not (target / "state" / "deep").exists()
    assert number > len(FILES)
