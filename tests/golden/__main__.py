"""Write the golden files anew."""

import tempfile
from pathlib import Path

import matplotlib

from sdpo_plugin.report.html import html
from sdpo_plugin.report.pictures import CAPTIONS, pictures
from sdpo_plugin.report.render import markdown
from tests.golden.made import GOLDEN, golden_report, small_pictures

with tempfile.TemporaryDirectory() as folder, small_pictures():
    report = golden_report(Path(folder) / "out")
    (GOLDEN / "report.md").write_text(markdown(report, list(CAPTIONS.items())), encoding="utf-8")
    (GOLDEN / "report.html").write_text(html(report), encoding="utf-8")
    for name, picture in pictures(report).items():
        (GOLDEN / name).write_bytes(picture)
    release = ".".join(matplotlib.__version__.split(".")[:2])
    (GOLDEN / "matplotlib.txt").write_text(f"{release}\n")
