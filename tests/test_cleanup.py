"""Removal of the files of a run without a finished step, and of models that are not kept."""

from pathlib import Path

from sdpo_plugin.run_dir.cleanup import clear, sweep
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import SEAL
from tests.dead_runs import checkpoint, die
from tests.fakes import D_1, FakeHost, make_plan, run


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_clearing_removes_the_files_of_a_run_without_a_finished_step(run_dir: RunDir) -> None:
    die(run_dir, "train M_0 on D_1", FakeHost(adapter=True, early=["M_0"]))
    for path in (
        run_dir.pool(1),
        run_dir.history(make_plan().steps[0]),
        run_dir.staging / "half.bin",
        run_dir.root / "mine.txt",
        run_dir.lock,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    clear(run_dir)
    assert tree(run_dir.root) == {"mine.txt", "sdpo/plan.json", "sdpo/lock"}
    clear(run_dir)  # nothing to do


def test_sweep_removes_the_models_that_the_ledger_says_are_gone(run_dir: RunDir) -> None:
    rows = [D_1] * 3
    ledger = run(FakeHost(rows), run_dir, make_plan(rows))
    checkpoint(run_dir, 2, 5)
    sweep(run_dir, ledger)
    assert {f"step-{step}/config.json" for step in (1, 2, 3)} <= tree(run_dir.root)
    sweep(run_dir, ledger.record(2, kept=False))
    assert {path for path in tree(run_dir.root) if path.startswith("step-2")} == {
        "step-2/checkpoint-5/model.bin",
        f"step-2/checkpoint-5/{SEAL}",
    }
    assert {"step-1/config.json", "step-3/config.json"} <= tree(run_dir.root)


def test_sweep_leaves_a_directory_alone_that_is_called_like_a_half_written_file(run_dir: RunDir) -> None:
    ledger = die(run_dir, "train M_1 on D_2")
    (run_dir.root / "sdpo" / ".mine.tmp").mkdir()
    (run_dir.root / "sdpo" / ".ledger.json.x.tmp").touch()
    sweep(run_dir, ledger)
    assert (run_dir.root / "sdpo" / ".mine.tmp").is_dir()
    assert not (run_dir.root / "sdpo" / ".ledger.json.x.tmp").exists()
