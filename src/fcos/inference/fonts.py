"""Fonts and rendered text for pictures."""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..plotting import import_matplotlib

log = logging.getLogger(__name__)

_ASCII = frozenset(map(chr, range(32, 127)))
_undrawable: list[str] = []  # the first name that no font can render; a process warns only once


@lru_cache(maxsize=1024)
def find_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans (part of matplotlib), or a system font for letters that it lacks; warn once if none has them.

    Args:
        size: font size in pixels.
        text: text to be rendered.
    """
    default_font = Path(import_matplotlib().get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    missing = frozenset(text) - _characters(default_font)
    if not missing:
        return _open_font(default_font, size)
    file = _find_system_font(missing)
    if file is None and not _undrawable:
        _undrawable.append(text)
        log.warning(
            "pictures: no installed font has all characters of %s (other names are not reported); install one, for"
            " example the Noto fonts (Debian and Ubuntu: apt install fonts-noto fonts-noto-cjk)",
            text,
        )
    return _open_font(file or default_font, size)


@cache
def _find_system_font(characters: frozenset[str]) -> Path | None:
    """Return the first system font with these letters and ASCII, preferably a regular one; None if there is none."""
    from matplotlib.font_manager import findSystemFonts

    files = sorted(map(Path, findSystemFonts()), key=lambda file: ("Regular" not in file.name, file))
    return next((file for file in files if characters | _ASCII <= _characters(file)), None)


@cache
def _characters(font: Path) -> frozenset[str]:
    """Return the characters that a font has; an empty set if the font cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(str(font)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=16)
def _open_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=1024)
def render(text: str, font: ImageFont.FreeTypeFont, height: int) -> Image.Image:
    """Render text in the middle of a strip of the given height.

    Names and scores repeat, so the results are kept. The caller must not modify them.

    Returns:
        Opacity of the text, an image of mode L.
    """
    strip = Image.new("L", (max(1, round(font.getlength(text))), height))
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=255, font=font, anchor="lm")
    return strip


@lru_cache(maxsize=4096)
def text_width(text: str, font: ImageFont.FreeTypeFont) -> float:
    """Return the width of a text in pixels; names and scores repeat, so the results are kept."""
    return font.getlength(text)
