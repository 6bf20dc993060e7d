"""Builder of a self-contained HTML page with text, key figures, tables, charts and images, without network requests.

Charts are drawn by matplotlib and embedded as SVG, whose colours follow the light or dark theme of the page. Images are
embedded as data URIs. User text, such as names of classes and files, is always escaped. The same content gives the same
bytes. Used by `fcos report` and `fcos doctor`.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .files import write_text
from .formatting import format_metric, printable, printable_lines
from .plotting import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

TEMPLATE = Path(__file__).with_name("page.html")
COLORS = ("#2f7fd8", "#e08a00", "#18a077", "#d5485a", "#9a6bd0", "#3fb3cf", "#8c7a5b", "#8a93a0")
"""Colours of the series of a chart: distinguishable for most people, visible on white and on black."""
WIDTH = 340
"""Width of a chart in units; one unit is about one pixel on a phone."""
_RIGHT_TO_LEFT = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]+"
_INK, _LINE = "#0a0b0c", "#0a0b0d"  # placeholders, replaced by colours of the page in `_svg`
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keeps text selectable and in the page's font
    "text.parse_math": False,  # names may contain $
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


class Cell(NamedTuple):
    """Table cell with a bar or a background colour.

    Attributes:
        text: text of the cell, right-aligned like a number.
        bar: length of a bar behind the text, 0..1; None: no bar.
        heat: strength of the background colour, 0..1; None: no colour.
    """

    text: str
    bar: float | None = None
    heat: float | None = None


class Tile(NamedTuple):
    """Key figure: label, value, and a short note below."""

    label: str
    value: str
    note: str = ""


class Chart(NamedTuple):
    """Chart drawn with matplotlib.

    Attributes:
        title: title above the chart.
        draw: function that draws on the given axes, whose default colour cycle is `COLORS`. It must pass user text
            through `printable`.
        height: height in the units of `WIDTH`; the font size is 10 of them.
    """

    title: str
    draw: Callable[[Axes], object]
    height: int = 220


class PageImage(NamedTuple):
    """Image with a caption below it."""

    image: Image.Image
    caption: str


class Legend(NamedTuple):
    """Legend entry for lines of one colour (RGB, 0..255) in images."""

    color: tuple[int, int, int]
    label: str
    dashed: bool = False


@dataclass
class Section:
    """Section of a page, which shows its blocks in the order in which they were added."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Add a heading."""
        self._add("heading", text=text)

    def text(self, text: str, *, style: Literal["", "note", "warning"] = "") -> None:
        """Add a paragraph: plain, small and grey, or marked as a warning."""
        self._add("text", text=text, style=style)

    def tiles(self, tiles: Sequence[Tile]) -> None:
        """Add key figures."""
        self._add("tiles", tiles=tiles)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str | float | Cell | None]], caption: str = ""
    ) -> None:
        """Add a table. Tables that are too wide or too high get scroll bars.

        Args:
            columns: column headings.
            rows: cells of each row. Text is left-aligned, numbers are right-aligned; floats have three decimals, NaN
                and None are shown as a dash.
            caption: caption above the table.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = (
            [all(row[i]["number"] for row in cells) for i in range(len(columns))] if cells else [False] * len(columns)
        )
        self._add("table", columns=list(zip(columns, numeric, strict=True)), rows=cells, caption=caption)

    def charts(self, charts: Sequence[Chart]) -> None:
        """Add charts, side by side if they fit."""
        self._add("charts", charts=[{"title": chart.title, "svg": _svg(chart)} for chart in charts])

    def images(self, images: Sequence[PageImage]) -> None:
        """Add images, side by side if they fit."""
        self._add("images", images=[_embed(image) for image in images])

    def legend(self, entries: Sequence[Legend]) -> None:
        """Add a legend for the lines in the images."""
        self._add("legend", entries=entries)

    def details(self, title: str, text: str) -> None:
        """Add a preformatted text that is collapsed by default."""
        self._add("details", title=title, text=text)

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"kind": kind, **content})


@dataclass
class Page:
    """HTML page.

    Attributes:
        title: title of the page.
        subtitle: line below the title.
        footer: last line of the page.
        sections: sections in the order in which they are shown.
    """

    title: str
    subtitle: str = ""
    footer: str = ""
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """Add a section and return it."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """Return the page as HTML."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        environment.filters["isolated"] = _isolated
        text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=self)
        return printable_lines(text)

    def save(self, path: Path) -> None:
        """Write the page to a file atomically: an existing file is replaced only when the new one is complete.

        Raises:
            WriteError: the disk is full or not writable.
        """
        write_text(path, self.html())


def _isolated(text: str) -> Any:
    """Escape a text and isolate right-to-left words, so that a number after them is not displayed before them."""
    from markupsafe import Markup, escape

    words = f"{_RIGHT_TO_LEFT}(?: {_RIGHT_TO_LEFT})*"
    return Markup(re.sub(words, r"<bdi>\g<0></bdi>", str(escape(text))))


def _cell(value: str | float | Cell | None) -> dict[str, Any]:
    if isinstance(value, Cell):
        return {"text": value.text, "number": True, "bar": _percent(value.bar), "heat": _percent(value.heat)}
    plain = {"bar": None, "heat": None, "number": not isinstance(value, str)}
    if isinstance(value, str):
        return {"text": printable(value), **plain}
    return {"text": format_metric(value) if value is None or isinstance(value, float) else f"{value:,}", **plain}


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * min(max(share, 0), 1), 1)


def _svg(chart: Chart) -> Any:
    """Draw a chart as an SVG element to embed in a page."""
    mpl = import_matplotlib()
    from cycler import cycler
    from markupsafe import Markup
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "axes.prop_cycle": cycler(color=COLORS), "svg.hashsalt": "fcos"}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # only the browser needs the glyphs
        figure = Figure(figsize=(WIDTH / 72, chart.height / 72), layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # default labels are mathtext, which is off
                low, high = axis.get_view_interval()
                axis.set_major_formatter("{x:g}")
                digits = "25" if high < 100 * low else ""  # minor labels only fit on short ranges
                axis.set_minor_formatter(lambda x, _, digits=digits: f"{x:g}" if f"{x:e}"[0] in digits else "")
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    # Drops ids that would repeat in every chart. Ids that are referenced are hashes of the content and stay.
    rest = re.sub(r' id="\w+_\d+"', "", rest)
    return Markup(f'<svg {box[0]} role="img">{rest}')


def _embed(image: PageImage) -> dict[str, Any]:
    file = io.BytesIO()
    image.image.convert("RGB").save(file, "JPEG", quality=85)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"uri": uri, "caption": image.caption, "width": image.image.width, "height": image.image.height}
