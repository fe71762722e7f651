"""Local data are what they hold: a file edited in place is other data, for a new run and for one that is resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from integration_tests.harness.data import Config, base_config, chat_set, intel_set, read_rows, write_config
from integration_tests.harness.deaths import PLUGINS, train
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import sdpo_config

STEPS = 4


def digests(config: Path) -> list[str]:
    """The digest of the rows of each step of a run."""
    plan = json.loads((config.parent / "out/sdpo/plan.json").read_text(encoding="utf-8"))
    return [step["rows_digest"] for step in plan["steps"]]


def edit(path: Path) -> None:
    """Change one letter; size and time stay."""
    before, text = path.stat(), path.read_text(encoding="utf-8")
    changed = text.replace("the", "teh", 1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def write_saved(source: str, out: str) -> None:
    """A set as `save_to_disk` leaves it. Runs in a fork."""
    from datasets import Dataset

    Dataset.from_list(read_rows(Path(source))).save_to_disk(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("edited")


@pytest.fixture(scope="module")
def runs(host: Host, model: Path, folder: Path) -> dict[str, Path]:
    """A run that died in its last step, and runs after its data were edited; `again`: before that."""
    file, plain = intel_set(folder / "file.jsonl", 8, 1), intel_set(folder / "plain.jsonl", 8, 4)
    (folder / "directory").mkdir()
    inside = chat_set(folder / "directory/rows.jsonl", 8, 2)
    source = chat_set(folder / "saved.jsonl", 8, 3)
    host.python("integration_tests.test_edited_data:write_saved", source["path"], folder / "saved")
    sets: list[Config] = [
        file,
        {**inside, "path": str(folder / "directory")},
        {**source, "path": str(folder / "saved")},
        plain,
    ]

    def run(name: str) -> Path:
        made = base_config(model, sets, folder / name, dataset_prepared_path=str(folder / "prepared"))
        config = sdpo_config(made, plugins=PLUGINS, auto_resume_from_checkpoints=True)
        return write_config(folder / name / "config.yaml", config)

    names = {name: run(name) for name in ("first", "again", "edited")}
    assert "a fault of the test" in train(host, names["first"], f"raise:{STEPS}:1:0").log_text
    (folder / "again.log").write_text(train(host, names["again"]).check().log_text, encoding="utf-8")
    edit(folder / "file.jsonl")
    edit(folder / "directory/rows.jsonl")
    shutil.rmtree(folder / "saved")
    edit(folder / "saved.jsonl")
    host.python("integration_tests.test_edited_data:write_saved", source["path"], folder / "saved")
    train(host, names["edited"]).check()
    return names


def test_new_run_sees_the_edit(runs: dict[str, Path]) -> None:
    """File, directory, and a set that was saved; what was not edited is as it was."""
    before, after = digests(runs["first"]), digests(runs["edited"])
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, False, True]


def test_unchanged_data_are_not_prepared_again(runs: dict[str, Path], folder: Path) -> None:
    log = (folder / "again.log").read_text(encoding="utf-8")
    assert log.count("Loading prepared dataset from disk") == STEPS
    assert "Unable to find prepared dataset" not in log
    assert digests(runs["again"]) == digests(runs["first"])


def test_resume_names_the_rows(host: Host, runs: dict[str, Path]) -> None:
    """The run would train on other rows than those it began with."""
    result = train(host, runs["first"])
    said = "\n".join(messages(result))
    assert result.returncode == 1
    assert "the run in output_dir cannot be resumed: since it began this has changed:" in said
    before, after = (
        json.loads((runs[name].parent / "out/sdpo/ledger.json").read_text(encoding="utf-8"))["identity"]["rows"]
        for name in ("first", "edited")
    )
    for source in ("source 1", "source 2", "source 3"):
        rows = (facts[source] for facts in (before, after))
        old, new = (f"{row['rows']} rows with digest {row['digest'][:12]}…" for row in rows)
        assert re.search(rf"rows: {source} \(\S+\) is {new}, and it was {old}$", said, re.MULTILINE), said
    assert "source 4" not in said


# --- disks that are full ---


def test_full_disk_while_data_are_prepared(host: Host, model: Path, folder: Path, tmp_path: Path) -> None:
    """First the cache of `datasets`, then, where that is filled, the host's own; the next run finds nothing damaged."""
    sets = [chat_set(tmp_path / "small.jsonl", 8, 1), intel_set(tmp_path / "large.jsonl", 2000, 2)]
    made = sdpo_config(base_config(model, sets, tmp_path, max_steps=1, num_epochs=1), plugins=PLUGINS)
    config = write_config(tmp_path / "config.yaml", made)

    def full() -> Result:
        return train(host, config, "limit-data:200000")

    where = f"step step-2: {sets[1]['path']}:train could not be prepared: a file is too large"
    advice = "or set dataset_prepared_path, or HF_HOME in the environment, to a larger disk."
    said = refused(full(), tmp_path / "out", where, f"dataset_prepared_path: {tmp_path}/prepared (", advice)
    assert "below HF_HOME: " in said
    host.run(["preprocess", str(config)], tmp_path).check()
    shutil.rmtree(tmp_path / "prepared")
    refused(full(), tmp_path / "out", where, advice)
    train(host, config).check()
