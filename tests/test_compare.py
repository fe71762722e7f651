"""Runs side by side."""

from pathlib import Path

import pytest

from sdpo_plugin.cli import sdpo
from sdpo_plugin.report.compare import compare
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import die
from tests.fakes import FakeHost, make_plan, run, table_of

BY_TWO_X = "-2.00 (-4.77 to +0.77)"  # of γ


class OtherHost(FakeHost):
    """Its policy is θ + 1 where the other's is θ, and its held-out rows may be other ones."""

    heldout_rows = (1.0, 2.0, -1.0, 2.0)

    def heldout_tables(self, model: str, names: object) -> dict[str, object]:  # type: ignore[override]
        return {"val": table_of(self.heldout_rows, self.theta + 1, self.model)}


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A run of two steps, and one of one step beside it."""
    plan = make_plan(heldout={"val": ()})
    run(FakeHost(), RunDir(tmp_path / "chain"), plan)
    run(OtherHost(rows=[(1.0, 2.0)]), RunDir(tmp_path / "plain"), make_plan(rows=[(1.0, 2.0)], heldout={"val": ()}))
    return [tmp_path / "chain", tmp_path / "plain"]


def words(text: str, heading: str) -> list[list[str]]:
    """The lines of the table with this heading, cut where two spaces stand."""
    table = next(part for part in text.split("\n\n") if part.startswith(heading))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[2:]]


def test_last_models_stand_side_by_side_with_differences_to_the_first(two: list[Path]) -> None:
    text = compare(two)
    # val = 1, 2, −1, 2 and γ = 2θx: θ = 3 for M_2, and −1 + 2 + 1 = 2 for the other's M_1; M_0 −1 and 0.
    # Three of four above 0: Wilson 0.301 to 0.954. γ falls by 2x: mean −2, of −2, −4, 2, −4: √8 = 2.828 / 2 · 1.96
    assert words(text, "held-out val") == [
        ["chain", "M_2", "4", "0.750", "0.301 to 0.954", "–", "0.750", "+6.00", "–"],
        ["plain", "M_1", "4", "0.750", "0.301 to 0.954", "+0.000 (+0.000 to +0.000)", "0.750", "+4.00", BY_TWO_X],
    ]
    assert [line[:5] for line in words(text, "run")] == [
        ["chain", "2 of 2", "–", "M_1", "M_1"],
        ["plain", "1 of 1", "–", "M_0", "M_0"],
    ]


def test_other_rows_have_no_difference(tmp_path: Path, two: list[Path]) -> None:
    other = OtherHost(rows=[(1.0, 2.0)])
    other.heldout_rows = (1.0, 2.0, -1.0, 3.0)
    run(other, RunDir(tmp_path / "others"), make_plan(rows=[(1.0, 2.0)], heldout={"val": ()}))
    line = words(compare([two[0], tmp_path / "others"]), "held-out val")[1]
    assert (line[5], line[8]) == ("–", "–")


def test_run_that_is_not_finished_is_compared_as_far_as_it_came(tmp_path: Path, two: list[Path]) -> None:
    die(RunDir(tmp_path / "dead"), "train M_1 on D_2")
    text = compare([two[0], tmp_path / "dead"])
    assert words(text, "held-out val")[1][:2] == ["dead", "M_1"]
    assert words(text, "held-out test")[0] == ["chain", *["–"] * 8]  # it holds nothing of that name out
    assert words(text, "run")[1][1] == "1 of 2"


def test_runs_that_hold_nothing_out_say_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(FakeHost(), RunDir(tmp_path / name), make_plan(heldout={}))
    assert "These runs hold nothing out: set val_set_size or test_datasets" in compare([tmp_path / "a", tmp_path / "b"])


def test_directories_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    places = [tmp_path / "x" / "out", tmp_path / "y" / "out"]
    for place in places:
        run(FakeHost(), RunDir(place))
    assert [line[0] for line in words(compare(places), "run")] == [str(place) for place in places]


def test_damaged_table_costs_its_cells_and_is_named(two: list[Path]) -> None:
    RunDir(two[0]).heldout("M_2", 0).unlink()
    text = compare(two)
    assert words(text, "held-out val")[0][:2] == ["chain", "M_1"]
    assert "chain: sdpo/heldout/M_2-1.safetensors cannot be used" in text


def test_command_compares_and_writes_nothing(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for root in two for path in root.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        sdpo(["report", *map(str, two)], prog_name="axolotl sdpo")
    assert ended.value.code == 0
    assert capsys.readouterr().out == compare(two) + "\n"
    assert sorted(path for root in two for path in root.rglob("*")) == before


def test_command_names_a_directory_that_holds_no_run(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sdpo(["report", str(two[0]), str(tmp_path / "nothing")], prog_name="axolotl sdpo")
    assert ended.value.code == 1
    assert f"{tmp_path / 'nothing'} does not exist" in capsys.readouterr().err
