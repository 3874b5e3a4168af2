"""The HTML page."""

from __future__ import annotations

from pathlib import Path

from zerogate.report.figures import kept_channels, svg
from zerogate.report.page import html_table, write_page


def test_the_page_is_one_file_with_its_figures_inside(tmp_path: Path) -> None:
    groups = [{"name": "stem", "kept": 3, "units": 8}]
    drawn = svg(kept_channels({"λ=1": {"groups": groups}}))
    path = tmp_path / "new" / "report.html"
    sections = [("Table", "one & two", html_table(["x", "y"], [["1", "<2>"]])), ("F", "", drawn)]
    write_page(path, "a < b", sections)
    page = path.read_text()
    assert "a &lt; b" in page
    assert "one &amp; two" in page
    assert "&lt;2&gt;" in page
    assert drawn in page
    assert "src=" not in page  # nothing is fetched
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
