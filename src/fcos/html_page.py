"""One self-contained HTML page: text, key figures, tables, charts, pictures. It asks the net for nothing.

Charts are drawn by matplotlib and stand in the page as SVG whose ink follows the page, light or dark; pictures are data
URIs. Whatever comes from a user, names of classes and files, is text and never markup. The same content gives the same
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

from .formatting import figure, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

TEMPLATE = Path(__file__).with_name("page.html")
COLORS = ("#2f7fd8", "#e08a00", "#18a077", "#d5485a", "#9a6bd0", "#3fb3cf", "#8c7a5b", "#8a93a0")
"""Of a chart's series: told apart by most eyes, visible on white and on black."""
WIDTH = 340
"""Of a chart; on a phone a unit is about a pixel."""
_RIGHT_TO_LEFT = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]+"
_INK, _LINE = "#0a0b0c", "#0a0b0d"  # what CSS replaces
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text that can be selected, in the page's font
    "text.parse_math": False,  # a $ in a name is a $
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
    """A table's cell that is more than a text or a number.

    Attributes:
        text: right-aligned, as a number is.
        bar: length of a bar behind the text, 0..1.
        heat: strength of a background colour, 0..1.
    """

    text: str
    bar: float | None = None
    heat: float | None = None


class Tile(NamedTuple):
    """A key figure: what it is, how much, and a few words below."""

    label: str
    value: str
    note: str = ""


class Chart(NamedTuple):
    """A chart to be drawn.

    Attributes:
        title: stands above it.
        draw: draws on the axes that it is given, in `COLORS` (their default cycle); what a user wrote is made
            `printable` first.
        height: units, of which a chart is `WIDTH` wide and its letters are 10 high.
    """

    title: str
    draw: Callable[[Axes], object]
    height: int = 220


class PageImage(NamedTuple):
    """A picture and what stands below it."""

    image: Image.Image
    caption: str


class Legend(NamedTuple):
    """What lines of a colour (RGB, 0..255) mean in pictures."""

    color: tuple[int, int, int]
    label: str
    dashed: bool = False


@dataclass
class Section:
    """A part of a page; its blocks stand in the order in which they are added."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a part of the section."""
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
        """Add a table, which scrolls by itself where it is too wide or too high.

        Args:
            columns: the headings.
            rows: the cells; texts are left-aligned, numbers right, floats with three decimals, NaN and None a dash.
            caption: stands above it.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = (
            [all(row[i]["number"] for row in cells) for i in range(len(columns))] if cells else [False] * len(columns)
        )
        self._add("table", columns=list(zip(columns, numeric, strict=True)), rows=cells, caption=caption)

    def charts(self, charts: Sequence[Chart]) -> None:
        """Add charts, side by side where there is room."""
        self._add("charts", charts=[{"title": chart.title, "svg": _svg(chart)} for chart in charts])

    def pictures(self, pictures: Sequence[PageImage]) -> None:
        """Add pictures, side by side where there is room."""
        self._add("pictures", pictures=[_embed(picture) for picture in pictures])

    def legend(self, entries: Sequence[Legend]) -> None:
        """Explain the lines of the pictures."""
        self._add("legend", entries=entries)

    def details(self, title: str, text: str) -> None:
        """Add a preformatted text that is folded away."""
        self._add("details", title=title, text=text)

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"kind": kind, **content})


@dataclass
class Page:
    """A page.

    Attributes:
        title: what it is about.
        subtitle: a line below.
        footer: the last line.
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
        """The page's text."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        environment.filters["isolated"] = _isolated
        text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=self)
        return "\n".join(map(printable, text.split("\n")))

    def save(self, path: Path) -> None:
        """Write the page; until it is complete, one that was there stays as it is.

        Raises:
            OSError: the disk is full or not writable.
        """
        new = path.with_name(f".{path.name}.new")
        try:
            new.write_text(self.html(), encoding="utf-8")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _isolated(text: str) -> Any:
    """A text in which what is written from the right keeps its place: a figure behind a name would go before it."""
    from markupsafe import Markup, escape

    words = f"{_RIGHT_TO_LEFT}(?: {_RIGHT_TO_LEFT})*"
    return Markup(re.sub(words, r"<bdi>\g<0></bdi>", str(escape(text))))


def _cell(value: str | float | Cell | None) -> dict[str, Any]:
    if isinstance(value, Cell):
        return {"text": value.text, "number": True, "bar": _percent(value.bar), "heat": _percent(value.heat)}
    plain = {"bar": None, "heat": None, "number": not isinstance(value, str)}
    if isinstance(value, str):
        return {"text": printable(value), **plain}
    return {"text": figure(value) if value is None or isinstance(value, float) else f"{value:,}", **plain}


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * min(max(share, 0), 1), 1)


def _svg(chart: Chart) -> Any:
    """The chart as an SVG element for the inside of a page."""
    import matplotlib as mpl
    from cycler import cycler
    from markupsafe import Markup
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "axes.prop_cycle": cycler(color=COLORS), "svg.hashsalt": "fcos"}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has it
        figure = Figure(figsize=(WIDTH / 72, chart.height / 72), layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # matplotlib's labels are formulas, which are not parsed
                low, high = axis.get_view_interval()
                axis.set_major_formatter("{x:g}")
                digits = "25" if high < 100 * low else ""  # there is room for few
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
    # Ids that something refers to are hashes of the content; the others would repeat from chart to chart.
    rest = re.sub(r' id="\w+_\d+"', "", rest)
    return Markup(f'<svg {box[0]} role="img">{rest}')


def _embed(picture: PageImage) -> dict[str, Any]:
    file = io.BytesIO()
    picture.image.convert("RGB").save(file, "JPEG", quality=85)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"uri": uri, "caption": picture.caption, "width": picture.image.width, "height": picture.image.height}
