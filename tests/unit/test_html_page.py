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


def test_names_are_text_and_never_markup() -> None:
    html = full_page(HOSTILE).html()
    assert html.count("&lt;script&gt;") >= 18
    assert "<script" not in html


def test_nothing_is_asked_of_the_net() -> None:
    html = full_page().html()
    sources = re.findall(r'src="([^"]*)"', html)
    assert [source[:23] for source in sources] == ["data:image/jpeg;base64,"]
    assert not re.search(r"https?:|//\w|@import|<link|<script|<iframe", html.replace(sources[0], ""))


def test_the_same_content_gives_the_same_bytes() -> None:
    assert full_page().html() == full_page().html()


def test_the_ink_of_charts_follows_the_page() -> None:
    html = full_page().html()
    assert "currentColor" in html
    assert "var(--line)" in html
    assert not re.search(r"#0a0b0c|#0a0b0d|#000000", html)


def test_text_of_charts_can_be_selected() -> None:
    page = Page("p")
    page.section("s").charts([Chart("c", lambda axes: axes.set_xlabel("iterations 漢字"))])
    assert ">iterations 漢字</text>" in page.html()


def test_a_dash_where_a_number_is_not_defined() -> None:
    page = Page("p")
    page.section("s").table(["a", "b", "c", "d"], [["x", None, float("nan"), 0.12345]])
    assert re.findall(r'<td class="number">(.*?)</td>', page.html()) == ["–", "–", "0.123"]  # noqa: RUF001


@pytest.mark.parametrize(("share", "written"), [(-1.0, "0%"), (0.256, "25.6%"), (7.0, "100%")])
def test_bars_stay_inside_their_cells(share: float, written: str) -> None:
    page = Page("p")
    page.section("s").table(["a", "b"], [["x", Cell("1", bar=share)]])
    assert f'style="--share: {written}"' in page.html()


def test_a_file_name_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    full_page("caf\udce9").save(tmp_path / "page.html")
    assert "caf\\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_control_characters_are_escaped_and_lines_kept() -> None:
    page = Page("p")
    page.section("s").details("config", "a: 1\nb: \u202e")
    assert "a: 1\nb: \\u202e" in page.html()


def test_a_name_written_from_the_right_leaves_its_neighbours_in_place() -> None:
    page = Page("p")
    page.section("s").table(["class", "חתול"], [["כלב", "x"]])
    assert page.html().count("<bdi>") == 4


def test_names_in_texts_do_not_move_the_figures_behind_them() -> None:
    page = Page("p")
    page.section("s").text("<dog> 83%, שלום עולם 88%, سيارة_2: 0%")
    assert "&lt;dog&gt; 83%, <bdi>שלום עולם</bdi> 88%, <bdi>سيارة</bdi>_2: 0%" in page.html()


def test_an_earlier_page_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    full_page().save(path)
    before = path.read_bytes()
    broken = Page("p")
    broken.section("s").blocks.append({"kind": "text"})
    with pytest.raises(Exception, match="style"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_is_left_as_it_was() -> None:
    subprocess.run([sys.executable, str(PROGRAM)], check=True)
