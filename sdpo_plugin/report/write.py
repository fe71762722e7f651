"""The files of a report."""

from collections.abc import Mapping
from typing import Any

from sdpo_plugin.report.html import html
from sdpo_plugin.report.pictures import CAPTIONS, pictures
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.files import write_bytes, write_json
from sdpo_plugin.run_dir.paths import RunDir


def write_report(run: RunDir, report: Mapping[str, Any], *, draw: bool = False) -> None:
    """Write `report.json`, `report.md` and `report.html`, and the pictures beside them.

    Pictures take longer than the rest. They are drawn when the run is finished, once, and when that is asked for;
    those of an earlier report do not stay beside another one.

    Args:
        run: the run directory.
        report: its content.
        draw: whether pictures are drawn in any case.

    Raises:
        OSError: they cannot be written.
    """
    write_json(run.report, report)
    _write_pictures(run, report, draw)
    there = [(name, caption) for name, caption in CAPTIONS.items() if (run.folder / name).exists()]
    write_bytes(run.report.with_suffix(".md"), markdown(report, there).encode())
    write_bytes(run.report.with_suffix(".html"), html(report).encode())


def _write_pictures(run: RunDir, report: Mapping[str, Any], draw: bool) -> None:
    places = {name: run.folder / name for name in CAPTIONS}
    last = list(places.values())[-1]  # when it is there, the others have been written
    if report["finished"] and not draw and last.exists():
        return
    drawn = pictures(report) if draw or report["finished"] else {}
    for name, place in places.items():
        if name in drawn:
            write_bytes(place, drawn[name])
        else:
            place.unlink(missing_ok=True)
