"""`report.html` and `report.md` as they are read: golden files, well-formed, closed to the outside, and escaped."""

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.html import PAPER, html
from sdpo_plugin.report.oklab import contrast, hex_of, mixed, rgb_of
from sdpo_plugin.report.palette import DARK, LIGHT, Range, Scale
from sdpo_plugin.report.pictures import CAPTIONS
from sdpo_plugin.report.render import markdown
from sdpo_plugin.report.svg import Axis
from sdpo_plugin.run_dir.paths import RunDir
from tests.dead_runs import die
from tests.fakes import FakeHost, make_plan, run
from tests.golden.made import GOLDEN, golden_report

VOID = {"meta", "br", "img", "link", "input", "hr", "line", "circle", "polyline"}  # no end tag, or closed at once
MARK = '<script>alert("x")</script>&amp;'


class Page(HTMLParser):
    """What a browser makes of a page.

    Attributes:
        texts: the text within each element, in the order in which elements end, as (element, class, text).
        attributes: all of them, as (element, name, value).
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[tuple[str, str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[tuple[str, str, list[str]]] = []
        self.feed(source)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or "", []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        opened, kind, texts = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"
        self.texts.append((tag, kind, "".join(texts)))

    def of(self, tag: str, kind: str | None = None) -> list[str]:
        """The text of each of these elements."""
        return [text for found, class_, text in self.texts if found == tag and kind in (None, class_)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return golden_report(tmp_path_factory.mktemp("golden") / "out")


@pytest.fixture
def report(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made)


# --- golden files ---


def test_markdown_is_as_it_was(report: dict[str, Any]) -> None:
    """`python -m tests.golden` writes it anew."""
    assert markdown(report, list(CAPTIONS.items())) == (GOLDEN / "report.md").read_text(encoding="utf-8")


def test_page_is_as_it_was(report: dict[str, Any]) -> None:
    """`python -m tests.golden` writes it anew."""
    assert html(report) == (GOLDEN / "report.html").read_text(encoding="utf-8")


def test_markdown_shows_the_pictures_that_are_there(report: dict[str, Any]) -> None:
    assert "![" not in markdown(report)
    text = markdown(report, [("training.png", "loss and reward margin")])
    assert "\n## Figures\n\n![loss and reward margin](training.png)\n\n## " in text


# --- structure ---


def test_sections_of_the_page(report: dict[str, Any]) -> None:
    page = Page(html(report))
    assert page.of("h1") == ["Stepwise DPO (sDPO) run"]
    assert page.of("h2") == [
        "Remarks",
        "Steps",
        "What each step began at",
        "Training",
        "Checks of the data",
        "Order of the sources",
        "Models on held-out sets",
        "Models on training rows",
        "Benchmarks",
        "Where the time went",
        "Words",
    ]
    assert len(page.of("svg")) == 3
    assert page.of("p", "facts") == ["3 steps, finished, from base/model"]


def test_page_says_what_the_report_says(report: dict[str, Any]) -> None:
    """γ_ref of step 2 is 4 and its loss ends at 0.5; M_1 is right about three of the four rows of D_2."""
    page = Page(html(report))
    assert "M2 step-2|4|0|3|+4.00|0.6931|0.5000|0.750|0.000".split("|") in rows(html(report))
    assert ["arc_easy", "acc", "0.250 ± 0.062", "0.375 ± 0.062"] in rows(html(report))
    assert len(page.of("li")) == len(report["verdicts"]) + len(report["warnings"])
    assert "95 % −11.49 to −6.41" in page.of("li")[0]
    assert page.of("footer")[0].endswith("Made with axolotl 0.19.0, trl 1.9.0.")


def rows(source: str) -> list[list[str]]:
    """The cells of each row of every table."""
    found = re.findall(r"<tr>(.*?)</tr>", source, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in found]


def test_what_was_not_computed_is_hatched_and_said(report: dict[str, Any]) -> None:
    before = html(report).count('<td class="none"><span>not computed</span></td>')
    report["train"]["gamma"][1][2] = None
    assert html(report).count('<td class="none"><span>not computed</span></td>') == before + 1
    assert before == 0


def change_a_number(report: dict[str, Any]) -> None:
    report["heldout"]["gamma"][1][0] = 2.5


def change_a_curve(report: dict[str, Any]) -> None:
    report["steps"][0]["curve"]["loss"][1] = 0.9


def change_a_quartile(report: dict[str, Any]) -> None:
    report["train"]["gamma_q25"][0][2] = -9.0


@pytest.mark.parametrize("change", [change_a_number, change_a_curve, change_a_quartile])
def test_page_changes_with_its_numbers(report: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    before = html(report)
    change(report)
    assert html(report) != before


# --- runs of every kind ---


def dead_at_the_start(run_dir: RunDir) -> None:
    die(run_dir, "table of D_1 by M_0")


def dead_in_the_middle(run_dir: RunDir) -> None:
    die(run_dir, "train M_1 on D_2")


def one_step(run_dir: RunDir) -> None:
    """Of one update."""
    run(FakeHost([[1.0, 2.0]]), run_dir, make_plan([[1.0, 2.0]], heldout={}))


def eight_steps(run_dir: RunDir) -> None:
    rows_ = [[float(step), 1.0, 2.0] for step in range(8)]
    run(FakeHost(rows_), run_dir, make_plan(rows_))


def all_damaged(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    for path in [*run_dir.folder.rglob("*.safetensors"), *run_dir.histories.iterdir()]:
        path.unlink()


@pytest.mark.parametrize(
    ("make", "charts"),
    [(dead_at_the_start, 0), (dead_in_the_middle, 3), (one_step, 3), (eight_steps, 3), (all_damaged, 0)],
)
def test_page_of_every_run_is_well_formed(run_dir: RunDir, make: Callable[[RunDir], None], charts: int) -> None:
    make(run_dir)
    report = build_report(run_dir)
    page = Page(html(report))
    assert len(page.of("svg")) == charts
    assert ("Training" in page.of("h2")) is (charts > 0)
    state = "finished" if report["finished"] else "not finished"
    assert page.of("p", "facts")[0].split(", ")[1] == state


def test_curve_of_one_point_can_be_seen(run_dir: RunDir) -> None:
    """Twice the same point, with round ends, is a dot; a line of one point is nothing."""
    one_step(run_dir)
    lines = re.findall(r'<polyline class="curve" points="([^"]*)"/>', html(build_report(run_dir)))
    assert [len(set(line.split())) for line in lines] == [1, 1]
    assert [len(line.split()) for line in lines] == [2, 2]


def test_page_of_a_run_under_way_says_where_it_stands(run_dir: RunDir) -> None:
    dead_in_the_middle(run_dir)
    said = Page(html(build_report(run_dir))).of("p", "facts")[1]
    assert said.startswith("As this was written: 1 of 2 steps done; step step-2 at update 0 of 4; 4 updates left")


def test_page_of_a_run_without_remarks_says_so(run_dir: RunDir) -> None:
    run(FakeHost(), run_dir)
    assert "<p>Nothing to remark.</p>" in html(build_report(run_dir))


# --- closed to the outside ---


def test_page_needs_nothing_from_elsewhere(report: dict[str, Any]) -> None:
    """The one address is that of the paper, to be clicked on."""
    source = html(report)
    page = Page(source)
    assert re.findall(r"https?://[^\s\"'<>)]+", source) == [PAPER]
    assert ("a", "href", PAPER) in page.attributes
    assert {tag for tag, name, _ in page.attributes if name in ("src", "href", "srcset", "data")} == {"a"}
    assert not re.search(r"@import|url\(|<script|<link|<iframe|<img|<object", source)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def put_in_texts(report: dict[str, Any]) -> None:
    """The mark in every text that comes from config, paths and names."""
    report |= {"base_model": MARK, "warnings": [MARK], "versions": {MARK: MARK}}
    report["verdicts"][0]["text"] = MARK
    for step in report["steps"]:
        step |= {"name": MARK, "reference": MARK, "sources": [MARK]}
    for kind in ("train", "heldout"):
        report[kind]["sets"] = [MARK for _ in report[kind]["sets"]]
    for change in report["changes"]:
        change["set"] = MARK
    report["ordering"][0]["source"] = MARK


def test_texts_from_outside_are_escaped(report: dict[str, Any]) -> None:
    put_in_texts(report)
    source = html(report)
    page = Page(source)
    assert "<script" not in source
    assert page.of("script") == []
    assert MARK in page.of("code")[0]
    assert f"M1 {MARK}" in page.of("td")
    assert page.of("title")[0] == f"Stepwise DPO (sDPO) run: {MARK}"
    assert MARK in page.of("th")
    assert all("<" not in value for _, name, value in page.attributes if name in ("class", "style", "scope"))


# --- colours and axes ---


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_numbers_are_readable_on_every_colour(scale: Scale) -> None:
    """WCAG 2.1 AA asks for 4.5."""
    assert min(contrast(scale.colour(place / 100), scale.ink) for place in range(-100, 101)) > 4.5


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_go_from_one_end_by_the_middle_to_the_other(scale: Scale) -> None:
    ends = [scale.colour(place) for place in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert ends == [scale.low, scale.low, scale.middle, scale.high, scale.high]
    assert len({scale.colour(place / 20) for place in range(-20, 21)}) == 41


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # as WCAG's own examples have it


def test_grey_half_way_is_even_for_the_eye() -> None:
    """OKLab's lightness of a grey is the cube root of its light: half of it is an eighth of the light, #636363."""
    assert hex_of(mixed(rgb_of("#000000"), rgb_of("#ffffff"), 0.5)) == "#636363"


def test_range_holds_all_values_and_does_not_blow_up_noise() -> None:
    assert Range.around(0.5, [0.49, 0.52], 0.1) == Range(0.5, 0.1)
    wide = Range.around(0.0, [-4.0, 8.0], 1.0)
    assert (wide.place(8.0), wide.place(-4.0), wide.place(0.0)) == (1.0, -0.5, 0.0)
    assert Range.around(0.5, [], 0.1) == Range(0.5, 0.1)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-250.0, 150.0], ["−200", "−100", "0", "100"]),
        ([0.69, 0.69], ["0.66", "0.68", "0.70", "0.72"]),
        ([0.0, 0.0], ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        ([0.0, 12000.0], ["0", "5,000", "10,000"]),
    ],
    ids=str,
)
def test_ticks_are_round_numbers(values: list[float], labels: list[str]) -> None:
    assert [label for _, label in Axis.of(values, 0, 100).labels()] == labels


def test_axis_puts_numbers_where_they_belong() -> None:
    """A twentieth of 10 on either side: from −0.5 to 10.5 over 110 pixels, downwards."""
    axis = Axis.of([0.0, 10.0], 110, 0)
    assert [axis.at(value) for value in (-0.5, 0.0, 10.5)] == pytest.approx([110.0, 105.0, 0.0])


def test_files_are_written_in_utf_8(tmp_path: Path, report: dict[str, Any]) -> None:
    assert '<meta charset="utf-8">' in html(report)
