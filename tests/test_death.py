"""A run may die anywhere: what it ends with when it is resumed is what it would have ended with, bit for bit."""

import copy
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.errors import SDPOError
from sdpo_plugin.report import write
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.pictures import CAPTIONS
from sdpo_plugin.run_dir.checkpoints import checkpoints
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import find_start
from sdpo_plugin.run_dir.sealed import flaw, read_seal
from sdpo_plugin.run_dir.table_files import load_table
from tests.dying_host import EPOCHS, EVERY, ROWS, Variant, advance
from tests.fakes import EXTERNAL, IDENTITY
from tests.faults import Counter, FullDisk, before_each_operation, die, end_of, fork

SECONDS = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds")
REPORTED_SECONDS = ("log_probs_seconds", "diagnostics_seconds", "train_seconds", "export_seconds")
DEFAULT = Variant()
# Every reference, every start, and both ways to keep models.
OTHERS = [
    Variant(export_steps="last"),
    Variant(reference="base", export_steps="last"),
    Variant(reference=EXTERNAL),
    Variant(policy_init="base"),
    Variant(reference=EXTERNAL, policy_init="base", export_steps="last"),
]
KILLED = -signal.SIGKILL
Baseline = Callable[[Variant, int], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def quick_reports() -> Iterator[None]:
    """Hundreds of runs write a page that is not laid out and pictures that are not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "pictures", lambda report: dict.fromkeys(CAPTIONS, b"drawn"))
        patch.setattr(write, "html", lambda report: "a page")
        yield


@pytest.fixture
def runs() -> Iterator[Path]:
    """A directory for hundreds of runs: in memory where possible, and removed after the test."""
    memory = Path("/dev/shm")
    has_room = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**29
    place = memory if has_room else None
    with tempfile.TemporaryDirectory(dir=place, prefix="sdpo-death-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """The result of an uninterrupted run whose adapter was drawn with this seed."""

    @cache
    def result(variant: Variant, seed: int) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("whole")
        advance(out, variant, seed)
        return result_of(out)

    return result


def result_of(out: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for wall time, its run id, and checkpoints."""
    run = RunDir(out)
    ledger, report = Ledger.load(run.ledger), build_report(run)
    records = [asdict(record) for record in ledger.records]
    assert all(record.pop(key) > 0 for record in records for key in SECONDS)
    assert all(step.pop(key) > 0 for step in report["steps"] for key in REPORTED_SECONDS)
    assert read_seal(run.base_adapter).about == {"run": ledger.run_id, "model": "M_0"}
    assert read_seal(out).digest == ledger.final
    del report["lives"]  # when it began
    return {
        "weights": (out / "weights.bin").read_bytes(),
        "counts": json.loads((out / "config.json").read_bytes())["counts"],
        "seed": json.loads((run.base_adapter / "adapter_config.json").read_bytes())["seed"],
        "ledger": {
            **asdict(ledger),
            **{"run_id": "", "final": "", "exports": sorted(ledger.exports), "records": records, "lives": ()},
        },
        "final": read_seal(out).files,
        "tables": {key: load_table(out / key).digest() for key in ledger.tables},
        "models": {step.name: read_seal(run.step(step)).files for step, record in ledger.steps if record.kept},
        "report": report,
        "files": sorted(
            str(path.relative_to(out))
            for path in out.rglob("*")
            if path.is_file() and "checkpoint-" not in str(path) and path.suffix != ".tmp"  # left by a killed write
        ),
    }


def require_same(out: Path, variant: Variant, baseline: Baseline) -> None:
    """Assert that the run in ``out`` ended as an uninterrupted one with the adapter that was kept."""
    found = result_of(out)
    assert found == baseline(variant, found["seed"])
    # The comparison would not notice an error that both have.
    assert found["counts"] == variant.counts()
    assert found["tables"] == found["ledger"]["tables"]
    ledger, num_steps = found["ledger"], variant.num_steps
    assert (ledger["prepared"], ledger["finished"], ledger["saved"]) == (True, True, True)
    assert ledger["plan"] == asdict(variant.plan())
    assert ledger["identity"] == IDENTITY
    assert ledger["exports"] == [f"M_{index}" for index in range(num_steps + 1)]
    assert [(found["state"], found["num_optimizer_steps"], found["kept"]) for found in ledger["records"]] == [
        ("exported", EPOCHS * len(rows), variant.export_steps == "all") for rows in variant.rows
    ]


def require_whole(out: Path) -> None:
    """Assert that all that the ledger of a dead run vouches for is on disk, and that the run can be resumed."""
    run = RunDir(out)
    if not run.ledger.exists():
        return
    ledger = Ledger.load(run.ledger)
    for key, digest in ledger.tables.items():
        assert load_table(out / key).digest() == digest
    places = {"M_0": run.base_adapter} | {f"M_{step.index}": run.step(step) for step in ledger.plan.steps}
    gone = {f"M_{step.index}" for step, record in ledger.steps if not record.kept}
    for model in set(ledger.exports) - gone:
        assert flaw(places[model], {"run": ledger.run_id, "model": model}, ledger.exports[model]) is None
    find_start(run)


def live(out: Path, variant: Variant, seed: int, kill_at: int = 0) -> int:
    """Run one process, killed at this operation; return how it ended."""

    def work() -> None:
        counter = Counter(kill_at, die)
        with before_each_operation(counter):
            advance(out, variant, seed, counter.work)

    return end_of(fork(work))


def num_operations(out: Path, variant: Variant) -> int:
    counter = Counter()
    with before_each_operation(counter):
        advance(out, variant, 1, counter.work)
    return counter.number


def spread(number: int, end: int, seed: int) -> list[int]:
    """Random numbers from 1 … ``end``, one from each of ``number`` equal parts."""
    draw = random.Random(seed)
    return [draw.randint(part * end // number + 1, (part + 1) * end // number) for part in range(number)]


# --- the fake host itself ---


def test_adapter_is_drawn_anew_in_each_process_and_decides_the_result(baseline: Baseline) -> None:
    """Otherwise the tests below would not notice a resumed run that does not have the M_0 it began with."""
    assert baseline(DEFAULT, 1)["weights"] != baseline(DEFAULT, 2)["weights"]
    assert baseline(DEFAULT, 1)["seed"] == 1


@pytest.mark.parametrize("other", [Variant(reference="base"), Variant(reference=EXTERNAL), Variant(policy_init="base")])
def test_reference_and_start_decide_the_result(baseline: Baseline, other: Variant) -> None:
    assert baseline(DEFAULT, 1)["weights"] != baseline(other, 1)["weights"]


def test_run_has_hundreds_of_operations_of_every_kind(runs: Path) -> None:
    names: list[str] = []
    with before_each_operation(names.append):
        advance(runs, DEFAULT, 1, lambda: names.append("work"))
    assert len(names) > 500
    kinds = {"work", "create", "open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir"}
    assert set(names) == kinds
    # 24 updates, 4 times the held-out sets, 3 times the rows of a step
    assert names.count("work") == EPOCHS * sum(map(len, ROWS)) + 4 + 3 + 4 == 35


@pytest.mark.parametrize("variant", [DEFAULT, Variant(export_steps="last")], ids=str)
def test_finished_run_does_nothing_more(runs: Path, baseline: Baseline, variant: Variant) -> None:
    advance(runs, variant, 1)
    counter = Counter()
    with before_each_operation(counter):
        advance(runs, variant, 2, counter.work)
    assert counter.number == 3  # the lock: its directory, its file, its holder
    require_same(runs, variant, baseline)


# --- kill −9 ---


@pytest.mark.parametrize(("variant", "points"), [(DEFAULT, 60), *((other, 20) for other in OTHERS)], ids=str)
def test_killed_at_an_operation(runs: Path, baseline: Baseline, variant: Variant, points: int) -> None:
    end = num_operations(runs / "count", variant)
    for at in spread(points, end, seed=points):
        out = runs / f"killed-at-{at}"
        assert live(out, variant, 1, kill_at=at) == KILLED
        require_whole(out)
        assert live(out, variant, 2) == 0
        require_same(out, variant, baseline)


@pytest.mark.parametrize("variant", [DEFAULT, OTHERS[-1]], ids=str)
def test_killed_again_and_again(runs: Path, baseline: Baseline, variant: Variant) -> None:
    end, draw = num_operations(runs / "count", variant), random.Random(3)
    for number in range(6):
        out, lives = runs / f"run-{number}", 1
        while live(out, variant, lives, kill_at=draw.randint(20, end // 4)) == KILLED:
            require_whole(out)
            lives += 1
        assert lives > 3
        require_same(out, variant, baseline)


def test_killed_at_any_operation_of_the_end(runs: Path, baseline: Baseline) -> None:
    """Where M_T, its double and the last state of the ledger are written and the double is removed."""
    variant = Variant(export_steps="last")
    end = num_operations(runs / "count", variant)
    for at in range(end - 24, end + 1):
        out = runs / f"killed-at-{at}"
        assert live(out, variant, 1, kill_at=at) == KILLED
        require_whole(out)
        assert live(out, variant, 2) == 0
        require_same(out, variant, baseline)


def test_killed_at_a_random_moment(runs: Path, baseline: Baseline) -> None:
    """From outside, by the clock: also in the middle of an operation."""

    def slow(out: Path) -> Callable[[], None]:
        return lambda: advance(out, DEFAULT, 1, lambda: time.sleep(0.006))

    began = time.perf_counter()
    assert end_of(fork(slow(runs / "slow"))) == 0
    life, draw, kills = time.perf_counter() - began, random.Random(7), 0
    while kills < 30:
        out = runs / f"kill-{kills}"
        pid = fork(slow(out))
        time.sleep(life * (kills + draw.random()) / 30)
        os.kill(pid, signal.SIGKILL)
        # A machine that others use may finish a run before it is killed: that one does not count, and the next lives
        # are taken to be shorter, as the first may have been made while the machine had less time for it.
        if end_of(pid) == KILLED:
            require_whole(out)
            assert live(out, DEFAULT, 2) == 0
            kills += 1
        else:
            out = out.rename(runs / f"finished-{draw.random()}")
            life *= 0.9
        require_same(out, DEFAULT, baseline)


@dataclass(frozen=True)
class Dead:
    """A run that died in the middle of step 3, with two whole checkpoints."""

    out: Path
    checkpoints: list[Path]


@pytest.fixture
def dead(runs: Path) -> Dead:
    """Killed before update 8 of step 3."""
    out, updates = runs / "out", EPOCHS * (len(ROWS[0]) + len(ROWS[1])) + 7
    works = 3 + 3 + 3 + updates + 1  # tables of rows, held-out sets, samples, updates, and the one that is not made
    counter = Counter(works, die)
    assert end_of(fork(lambda: advance(out, DEFAULT, 1, counter.work))) == KILLED
    found = checkpoints(out / "step-3")
    assert [path.name for path in found] == [f"checkpoint-{EVERY}", f"checkpoint-{2 * EVERY}"]
    return Dead(out, found)


@pytest.mark.parametrize("damaged", [1, 2], ids=["newest", "both"])
@pytest.mark.parametrize("name", ["weights.bin", "optimizer.bin", "state/state.json", "sdpo_seal.json"])
def test_run_is_not_resumed_from_a_checkpoint_with_a_flipped_bit(
    dead: Dead, baseline: Baseline, name: str, damaged: int
) -> None:
    for checkpoint in dead.checkpoints[-damaged:]:
        data = bytearray((checkpoint / name).read_bytes())
        data[len(data) // 2] ^= 1
        (checkpoint / name).write_bytes(data)
    assert live(dead.out, DEFAULT, 2) == 0
    require_same(dead.out, DEFAULT, baseline)


def test_step_is_resumed_from_its_newest_checkpoint_and_repeats_nothing_else(dead: Dead, baseline: Baseline) -> None:
    worked: list[str] = []
    advance(dead.out, DEFAULT, 2, lambda: worked.append("work"))
    # updates 7 to 10 of step 3, and the held-out sets once more
    assert len(worked) == EPOCHS * len(ROWS[2]) - 2 * EVERY + 1 + 1 == 6  # held-out sets, and samples
    require_same(dead.out, DEFAULT, baseline)


# --- a run that grows ---

GROWS = [Variant(later=True), *(replace(other, later=True) for other in OTHERS)]


def shorter(variant: Variant) -> Variant:
    """The same without step 3, and the held-out set that it brings."""
    return replace(variant, num_steps=2)


def require_grown(out: Path, variant: Variant, baseline: Baseline) -> None:
    """Assert that the run in ``out`` ended as the longer one does from the start.

    With `export_steps: last` M_1 was gone when step 3 came, and what it says of that is missing, and nothing else.
    """
    found = result_of(out)
    whole = copy.deepcopy(baseline(variant, found["seed"]))
    if variant.export_steps == "all":
        assert found == whole
        return
    missing = {"sdpo/samples/M_1-step-3.safetensors", "sdpo/heldout/M_1-2.safetensors"}
    for result in (found, whole):
        for key in missing:
            for tables in (result["tables"], result["ledger"]["tables"]):
                assert (tables.pop(key, None) is None) == (result is found)
        result["files"] = [name for name in result["files"] if name not in missing]
        del result["report"]
    assert found == whole


@pytest.mark.parametrize("variant", GROWS, ids=str)
def test_run_that_has_grown_is_the_longer_run_from_the_start(runs: Path, baseline: Baseline, variant: Variant) -> None:
    """Weights, tables, report and all; by processes that each would draw another adapter."""
    advance(runs, shorter(variant), 1)
    before = Ledger.load(RunDir(runs).ledger)
    advance(runs, variant, 2)
    require_grown(runs, variant, baseline)
    ledger = Ledger.load(RunDir(runs).ledger)
    assert [life.steps for life in ledger.lives] == [("step-1", "step-2"), ("step-3",)]
    assert (ledger.run_id, ledger.lives[0]) == (before.run_id, before.lives[0])
    assert [record.train_seconds for record in ledger.records[:2]] == [r.train_seconds for r in before.records]


@pytest.mark.parametrize("variant", GROWS, ids=str)
def test_killed_while_it_grows(runs: Path, baseline: Baseline, variant: Variant) -> None:
    advance(runs / "short", shorter(variant), 1)
    end = num_operations(Path(shutil.copytree(runs / "short", runs / "count")), variant)
    for at in spread(4, end, seed=4):
        out = Path(shutil.copytree(runs / "short", runs / f"killed-at-{at}"))
        assert live(out, variant, 2, kill_at=at) == KILLED
        require_whole(out)
        assert live(out, variant, 3) == 0
        require_grown(out, variant, baseline)


@pytest.mark.parametrize("variant", [DEFAULT, Variant(policy_init="base", reference="base")], ids=str)
def test_unfinished_run_grows_wherever_it_died(runs: Path, baseline: Baseline, variant: Variant) -> None:
    """A step may be appended as soon as one thinks of it: what is trained is not touched by it."""
    variant = replace(variant, later=True)
    end = num_operations(runs / "count", shorter(variant))
    for at in spread(5, end, seed=5):
        out = runs / f"killed-at-{at}"
        assert live(out, shorter(variant), 1, kill_at=at) == KILLED
        assert live(out, variant, 2) == 0
        require_grown(out, variant, baseline)


def test_run_grows_again(runs: Path, baseline: Baseline) -> None:
    for num_steps in (1, 2, 3):
        advance(runs, Variant(num_steps=num_steps), num_steps)
    require_grown(runs, DEFAULT, baseline)
    assert [life.steps for life in Ledger.load(RunDir(runs).ledger).lives] == [("step-1",), ("step-2",), ("step-3",)]


def test_what_is_known_is_not_computed_again(runs: Path) -> None:
    variant = Variant(later=True)
    advance(runs, shorter(variant), 1)
    worked: list[str] = []
    advance(runs, variant, 2, lambda: worked.append("work"))
    # M_0 and M_1 on "test" and on rows of D_3; M_2 on "test" and D_3; 10 updates; M_3 on both sets, and on D_1 to D_3
    assert len(worked) == 4 + 2 + EPOCHS * len(ROWS[2]) + 2 == 18


# --- disk full ---


@pytest.mark.parametrize(
    ("variant", "stride"),
    [(Variant(num_steps=2), 1), (Variant(EXTERNAL, export_steps="last"), 17)],
    ids=str,
)
def test_disk_full_at_any_write(runs: Path, baseline: Baseline, variant: Variant, stride: int) -> None:
    at, finished = 1, False
    while not finished:
        out = runs / f"full-at-{at}"
        try:
            with before_each_operation(FullDisk(at)):
                advance(out, variant, 1)
            finished = True
        except (OSError, SDPOError) as error:
            assert "No space left on device" in str(error)  # noqa: PT017 (any of many calls may raise)
            require_whole(out)
            advance(out, variant, 2)
        require_same(out, variant, baseline)
        at += stride
    assert at > 300
