"""HTML page used by reports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcos.formatting import printable
from fcos.html_page import Cell, Chart, Legend, Page, PageImage, Tile

PROGRAM = Path(__file__).parents[1] / "helpers/programs/draw_a_chart.py"
HOSTILE = "<script>alert('$x$')</script>&\""


def full_page(name: str = "cells") -> Page:
    page = Page(name, name, name)
    section = page.section(name)
    section.heading(name)
    section.text(name, style="warning")
    section.tiles([Tile(name, name, name)])
    section.table([name, "n"], [[name, Cell(name, bar=0.5)], [name, Cell(name, heat=0.5)]], name)
    section.charts([Chart(name, lambda axes: axes.set_xlabel(printable(name)))])
    section.charts([Chart("bars", lambda axes: axes.bar([printable(name)], [1.0]))])
    section.images([PageImage(Image.new("RGB", (8, 4), "red"), name)])
    section.legend([Legend((1, 2, 3), name, dashed=True)])
    section.details(name, name)
    return page


def test_html_in_names_is_escaped() -> None:
    html = full_page(HOSTILE).html()
    assert html.count("&lt;script&gt;") >= 18
    assert "<script" not in html


def test_page_loads_no_external_resources() -> None:
    html = full_page().html()
    sources = re.findall(r'src="([^"]*)"', html)
    assert [source[:23] for source in sources] == ["data:image/jpeg;base64,"]
    assert not re.search(r"https?:|//\w|@import|<link|<script|<iframe", html.replace(sources[0], ""))


def test_same_content_gives_identical_html() -> None:
    assert full_page().html() == full_page().html()


def test_charts_use_the_colors_of_the_page() -> None:
    html = full_page().html()
    assert "currentColor" in html
    assert "var(--line)" in html
    assert not re.search(r"#0a0b0c|#0a0b0d|#000000", html)


def test_chart_text_is_selectable() -> None:
    page = Page("p")
    page.section("s").charts([Chart("c", lambda axes: axes.set_xlabel("iterations 漢字"))])
    assert ">iterations 漢字</text>" in page.html()


def test_undefined_numbers_are_shown_as_dashes() -> None:
    page = Page("p")
    page.section("s").table(["a", "b", "c", "d"], [["x", None, float("nan"), 0.12345]])
    assert re.findall(r'<td class="number">(.*?)</td>', page.html()) == ["–", "–", "0.123"]  # noqa: RUF001


@pytest.mark.parametrize(("share", "written"), [(-1.0, "0%"), (0.256, "25.6%"), (7.0, "100%")])
def test_bar_lengths_are_clamped_to_the_cell(share: float, written: str) -> None:
    page = Page("p")
    page.section("s").table(["a", "b"], [["x", Cell("1", bar=share)]])
    assert f'style="--share: {written}"' in page.html()


def test_non_unicode_file_name_can_be_written(tmp_path: Path) -> None:
    full_page("caf\udce9").save(tmp_path / "page.html")
    assert "caf\\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_control_characters_are_escaped_except_newlines() -> None:
    page = Page("p")
    page.section("s").details("config", "a: 1\nb: \u202e")
    assert "a: 1\nb: \\u202e" in page.html()


def test_table_cells_are_isolated_for_bidirectional_text() -> None:
    page = Page("p")
    page.section("s").table(["class", "חתול"], [["כלב", "x"]])
    assert page.html().count("<bdi>") == 4


def test_right_to_left_names_in_texts_are_isolated() -> None:
    page = Page("p")
    page.section("s").text("<dog> 83%, שלום עולם 88%, سيارة_2: 0%")
    assert "&lt;dog&gt; 83%, <bdi>שלום עולם</bdi> 88%, <bdi>سيارة</bdi>_2: 0%" in page.html()


def test_failed_save_keeps_the_previous_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    full_page().save(path)
    before = path.read_bytes()
    broken = Page("p")
    broken.section("s").blocks.append({"kind": "text"})
    with pytest.raises(Exception, match="style"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_settings_are_unchanged() -> None:
    subprocess.run([sys.executable, str(PROGRAM)], check=True)
