"""The PNGs of a report, compared as pictures; and a report where matplotlib is missing or fails."""

import copy
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from sdpo_plugin.report import figures, pictures
from sdpo_plugin.report.build import build_report, report_run
from sdpo_plugin.report.pictures import CAPTIONS
from sdpo_plugin.report.write import write_report
from sdpo_plugin.run_dir.paths import RunDir
from tests.conftest import RunPython
from tests.dead_runs import die
from tests.fakes import FakeHost, make_plan, run
from tests.golden.made import GOLDEN, golden_report, small_pictures

# Root mean square of the differences of two pictures, in levels of 0 … 255: another processor may round otherwise, and
# the smallest change of a number below is 3. Another release sets letters in other places: 3.9 against 3.11 is 31.
SAME = 1.0
MADE_WITH = (GOLDEN / "matplotlib.txt").read_text().strip()


@pytest.fixture(scope="module", autouse=True)
def few_pixels() -> Iterator[None]:
    with small_pictures():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return golden_report(tmp_path_factory.mktemp("golden") / "out")


@pytest.fixture
def report(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made)


def difference(one: bytes, other: bytes) -> float:
    """Between two pictures; infinite where their sizes differ."""
    first, second = (255 * np.asarray(imread(io.BytesIO(data)), dtype=float)[..., :3] for data in (one, other))
    return float(np.sqrt(np.mean((first - second) ** 2))) if first.shape == second.shape else float("inf")


# --- pictures ---


@pytest.mark.skipif(
    not matplotlib.__version__.startswith(MADE_WITH), reason=f"golden pictures are of matplotlib {MADE_WITH}"
)
@pytest.mark.parametrize("name", list(CAPTIONS))
def test_picture_is_as_it_was(report: dict[str, Any], name: str) -> None:
    """`python -m tests.golden` writes it anew."""
    assert difference(pictures.pictures(report)[name], (GOLDEN / name).read_bytes()) < SAME


def test_picture_is_the_same_every_time_whatever_the_style_of_the_user(report: dict[str, Any]) -> None:
    before = pictures.pictures(report)
    with rc_context({"font.family": "serif", "figure.facecolor": "red", "axes.grid": True, "savefig.dpi": 300}):
        assert pictures.pictures(report) == before


def more_gamma(report: dict[str, Any]) -> None:
    report["steps"][0]["gamma_ref"]["mean"] += 2.0


def more_loss(report: dict[str, Any]) -> None:
    report["steps"][2]["curve"]["loss"][10] += 0.5


def more_margin(report: dict[str, Any]) -> None:
    report["steps"][2]["curve"]["reward_margin"][10] += 5.0


def more_accuracy(report: dict[str, Any]) -> None:
    report["train"]["reference_free_accuracy"][1][1] = 0.25


def nothing_computed(report: dict[str, Any]) -> None:
    report["train"]["implicit_reward_accuracy"][1][1] = None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (more_gamma, "gamma_ref.png"),
        (more_loss, "training.png"),
        (more_margin, "training.png"),
        (more_accuracy, "matrices.png"),
        (nothing_computed, "matrices.png"),
    ],
)
def test_one_picture_changes_with_its_number(
    report: dict[str, Any], change: Callable[[dict[str, Any]], None], name: str
) -> None:
    before = pictures.pictures(report)
    change(report)
    after = pictures.pictures(report)
    assert {picture for picture in CAPTIONS if before[picture] != after[picture]} == {name}
    assert difference(before[name], after[name]) > 2 * SAME


def test_names_are_shown_as_they_are(report: dict[str, Any]) -> None:
    """No formula between dollars, and no error for letters that the font lacks."""
    for step, name in zip(report["steps"], ("a$\\frac{$c", "数据", "x" * 300), strict=True):
        step["name"] = name
    report["heldout"]["sets"] = ["$\\frac{$", "<b>"]
    assert set(pictures.pictures(report)) == set(CAPTIONS)


def eight_steps(run_dir: RunDir) -> None:
    rows = [[float(step), 1.0, 2.0] for step in range(8)]
    run(FakeHost(rows), run_dir, make_plan(rows))


def one_step(run_dir: RunDir) -> None:
    run(FakeHost([[1.0]]), run_dir, make_plan([[1.0]], heldout={}))


def without_tables(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    for path in run_dir.folder.rglob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        pytest.param(lambda run_dir: die(run_dir, "table of D_1 by M_0"), set(), id="dead-at-the-start"),
        pytest.param(
            lambda run_dir: die(run_dir, "train M_0 on D_1"), {"gamma_ref.png", "matrices.png"}, id="in-step-1"
        ),
        pytest.param(lambda run_dir: die(run_dir, "train M_1 on D_2"), set(CAPTIONS), id="in-step-2"),
        pytest.param(one_step, {"gamma_ref.png", "matrices.png"}, id="one-step-without-an-update"),
        pytest.param(eight_steps, set(CAPTIONS), id="eight-steps"),
        pytest.param(without_tables, {"training.png"}, id="tables-lost"),
    ],
)
def test_what_there_is_to_show_is_drawn(run_dir: RunDir, make: Callable[[RunDir], None], names: set[str]) -> None:
    make(run_dir)
    drawn = pictures.pictures(build_report(run_dir))
    assert set(drawn) == names
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())


# --- when they are drawn ---


def there(run_dir: RunDir) -> set[str]:
    return {path.name for path in run_dir.folder.glob("*.png")}


def test_pictures_are_drawn_when_the_run_is_finished_and_once(run_dir: RunDir) -> None:
    host, seen = FakeHost(), []

    def write() -> None:
        report_run(run_dir)
        seen.append(there(run_dir))

    host.on_report = write
    run(host, run_dir)
    assert seen[-1] == set(CAPTIONS)
    assert set().union(*seen[:-1]) == set()
    first = {name: (run_dir.folder / name).stat().st_ino for name in CAPTIONS}
    report_run(run_dir)
    assert {name: (run_dir.folder / name).stat().st_ino for name in CAPTIONS} == first


def test_pictures_that_a_death_kept_from_being_written_are_drawn_by_the_next_report(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    report_run(run_dir)
    (run_dir.folder / "matrices.png").unlink()
    report_run(run_dir)
    assert there(run_dir) == set(CAPTIONS)


def test_pictures_of_an_earlier_report_do_not_stay_beside_another(run_dir: RunDir) -> None:
    """The command draws a dead run; when it goes on, what it drew is out of date."""
    die(run_dir, "train M_1 on D_2")
    write_report(run_dir, build_report(run_dir), draw=True)
    assert there(run_dir) == set(CAPTIONS)
    assert "![" in run_dir.report.with_suffix(".md").read_text()
    report_run(run_dir)
    assert there(run_dir) == set()
    assert "![" not in run_dir.report.with_suffix(".md").read_text()


# --- without matplotlib ---


class Without(MetaPathFinder):
    """No package of this name can be imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname.split(".")[0] == self._name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [name for name in sys.modules if name.split(".")[0] == "matplotlib" or name == "sdpo_plugin.report.figures"]
    for name in gone:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("sdpo_plugin.report.figures")
    monkeypatch.setattr(sys, "meta_path", [Without("matplotlib"), *sys.meta_path])
    pictures._say_what_to_install.cache_clear()


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_rest_is_written_and_one_line_says_so(
    run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    run(FakeHost(), run_dir)
    with caplog.at_level(logging.INFO):
        report_run(run_dir)
        report_run(run_dir)
    assert caplog.messages == ["the report has no PNGs (No module named 'matplotlib'): pip install 'matplotlib>=3.9'"]
    assert {path.name for path in run_dir.folder.glob("report.*")} == {"report.json", "report.md", "report.html"}
    assert there(run_dir) == set()
    assert "![" not in run_dir.report.with_suffix(".md").read_text()


@pytest.mark.parametrize("error", [ValueError("no room"), MemoryError(), ZeroDivisionError("division by zero")])
def test_figure_that_fails_costs_itself_and_nothing_else(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(report: Any) -> bytes:
        raise error

    run(FakeHost(), run_dir)
    monkeypatch.setattr(figures, "training", fails)
    report_run(run_dir)
    assert caplog.messages == [f"sdpo/training.png was not drawn: {type(error).__name__}: {error}"]
    assert there(run_dir) == set(CAPTIONS) - {"training.png"}
    assert "training.png" not in run_dir.report.with_suffix(".md").read_text()


def test_matplotlib_is_imported_where_pictures_are_drawn_and_nowhere_before(
    run_python: RunPython, tmp_path: Path
) -> None:
    """After a step no picture is drawn, and a second stays with the training."""
    die(RunDir(tmp_path / "out"), "train M_1 on D_2")
    program = (
        "import sys; from pathlib import Path; from sdpo_plugin.report.build import report_run; "
        "from sdpo_plugin.run_dir.paths import RunDir; "
        f"report_run(RunDir(Path({str(tmp_path / 'out')!r}))); print('matplotlib' in sys.modules)"
    )
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
