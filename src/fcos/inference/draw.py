"""Drawing of detections.

A label is a filled tag in the colour of its class. The tags of the most confident detections are placed first. A tag is
placed outside its box if there is room, always inside the picture, and away from tags that are already placed.
"""

from __future__ import annotations

import colorsys
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.opening import MAX_PIXELS
from ..errors import ConfigError
from ..formatting import printable
from ..plotting import import_matplotlib
from ..structures import Instances
from .draw_shapes import draw_details
from .inputs import Picture, to_picture

log = logging.getLogger(__name__)

# Okabe and Ito's colours, distinguishable with any kind of colour vision; the blue is lighter, for dark pictures.
_PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (30, 120, 200), (213, 94, 0), (204, 121, 167)]
_ASCII = frozenset(map(chr, range(32, 127)))
_INK = (17, 17, 17)
_PAPER = (255, 255, 255)
_READABLE_SIDE = 480  # pixels; smaller pictures are enlarged to about this shorter side
_LARGEST_SIDE = 8192  # pixels; enlarging stops at this longer side
_undrawable: list[str] = []  # the first name that no font can render; a process warns only once


class Mark(NamedTuple):
    """A box to draw.

    Attributes:
        box: XYXY, pixels of the picture.
        color: RGB, 0..255.
        name: text of the tag; its end is cut off if the picture is too narrow.
        score: score written after the name; None writes no score. Without name and score, no tag is drawn.
        dashed: draw a dashed line.
    """

    box: Sequence[float]
    color: tuple[int, int, int]
    name: str = ""
    score: float | None = None
    dashed: bool = False


class _Tag(NamedTuple):
    text: str
    x: float
    y: float
    width: float
    height: float


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a label in 0..K-1: the same in every call, clearly different for adjacent labels."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    # Golden-ratio steps never repeat a hue; three levels of lightness distinguish close hues.
    hue, lightness = (0.11 + label * 0.61803398875) % 1.0, (0.55, 0.72, 0.42)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Picture,
    instances: Instances,
    *,
    scores: bool = True,
    scale: int | None = None,
    skeleton: Sequence[tuple[int, int]] | None = None,
) -> Image.Image:
    """Draw boxes with their class names, numbers of tracks, masks and keypoints onto a copy of an image.

    Args:
        image: a path, URL, PIL image, array or tensor as in `Detector.predict`.
        instances: detections to draw. Their boxes are in pixels of a frame of `instances.size` and are scaled to the
            image.
        scores: write the score after the name.
        scale: whole-number factor by which the picture is enlarged first. None enlarges small pictures to a shorter
            side of about 480 pixels, so that lines and text are legible.
        skeleton: pairs of keypoints, counted from 0, that a line connects. None: those of `instances`, or if the names
            of their keypoints are unknown, those of COCO for 17 keypoints.

    Returns:
        RGB picture, `scale` times as large as the image.

    Raises:
        DataError: `image` is not a picture.
        ConfigError: `instances` is not an `Instances`, or `scale` is not a whole number of at least 1, or the result
            would have more than 178,956,970 pixels.
    """
    if not isinstance(instances, Instances):
        raise ConfigError(f"instances: expected the result of Detector.predict, found {type(instances).__name__}")
    picture = enlarged(to_picture(image), scale)
    scaled = instances.to("cpu").resize_to((picture.height, picture.width))
    order = scaled.scores.argsort(descending=True, stable=True).tolist()
    boxes, labels, names = scaled.boxes.tolist(), scaled.labels.tolist(), scaled.names
    if scaled.track_ids is not None:
        names = [f"{name} #{i}" if i > 0 else name for name, i in zip(names, scaled.track_ids.tolist(), strict=True)]
    colors = [class_color(labels[i]) for i in order[::-1]]
    draw_details(picture, scaled[order[::-1]], colors, skeleton=skeleton)
    shown_scores = scaled.scores.tolist() if scores else [None] * len(scaled)
    draw_marks(picture, [Mark(boxes[i], class_color(labels[i]), names[i], shown_scores[i]) for i in order])
    return picture


def enlarged(picture: Image.Image, scale: int | None = None) -> Image.Image:
    """Return a copy that is `scale` times as large; for `scale=None` and errors see `draw`."""
    if scale is None:
        readable, largest = round(_READABLE_SIDE / max(1, min(picture.size))), _LARGEST_SIDE // max(1, *picture.size)
        scale = max(1, min(readable, largest))
    if not isinstance(scale, int) or scale < 1:
        raise ConfigError(f"scale: expected an integer of at least 1, found {scale}")
    largest_scale = max(1, math.isqrt(MAX_PIXELS // max(1, picture.width * picture.height)))
    if scale > largest_scale:
        raise ConfigError(
            f"scale: expected at most {largest_scale} for a picture of {picture.width}x{picture.height} pixels, found"
            f" {scale}; the result would have more than {MAX_PIXELS} pixels"
        )
    if scale == 1:
        return picture.copy()
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def draw_marks(picture: Image.Image, marks: Sequence[Mark], *, text_size: int | None = None) -> None:
    """Draw boxes and their tags onto a picture; the first marks are drawn on top, and their tags are placed first.

    Args:
        picture: picture to draw on; it is modified.
        marks: boxes to draw.
        text_size: font size in pixels; None derives it from the size of the picture.
    """
    line = max(2, round(0.0028 * (picture.width * picture.height) ** 0.5))
    size = text_size or max(11, round(0.021 * (picture.width * picture.height) ** 0.5))
    canvas = ImageDraw.Draw(picture, "RGBA")
    for mark in reversed(marks):
        _draw_box(canvas, mark, line)
    tags: list[_Tag] = []
    with_tags = [mark for mark in marks if mark.name or mark.score is not None]
    fonts = [_font(size, printable(mark.name)) for mark in with_tags]
    height = _font(size).getbbox("Ag")[3] + 2 * line
    areas = np.zeros((len(with_tags), 4))  # XYXY of the tags
    for i, (mark, font) in enumerate(zip(with_tags, fonts, strict=True)):
        text, width = _tag_text(mark, font, picture.width - 4 * line)
        tag = _place_tag(text, mark.box, areas[:i], size=(width + 4 * line, height), picture_size=picture.size)
        areas[i] = tag.x, tag.y, tag.x + tag.width, tag.y + tag.height
        tags.append(tag)
    for mark, tag, font in reversed(list(zip(with_tags, tags, fonts, strict=True))):
        _draw_tag(canvas, tag, mark.color, font)


def draw_pair(image: Picture, predictions: Instances, ground_truth: Instances) -> Image.Image:
    """Draw predictions (left) beside the ground truth (right), each with a caption above it.

    Args:
        image: a path, URL, PIL image, array or tensor as in `draw`.
        predictions: detections, drawn with their scores; boxes as in `draw`.
        ground_truth: annotated objects, drawn without scores; boxes as in `draw`.

    Returns:
        RGB picture; a small image is enlarged as in `draw`.

    Raises:
        DataError: `image` is not a picture.
    """
    panels = [
        (f"predicted: {len(predictions)}", draw(image, predictions)),
        (f"ground truth: {len(ground_truth)}", draw(image, ground_truth, scores=False)),
    ]
    width, height = panels[0][1].size
    gap = max(4, round(0.01 * width))
    size = max(12, round(0.022 * (width * height) ** 0.5))
    font = _font(size)
    strip = round(size * 1.8)
    sheet = Image.new("RGB", (2 * width + gap, height + strip), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for left, (caption, panel) in zip((0, width + gap), panels, strict=True):
        sheet.paste(panel, (left, strip))
        canvas.text((left + size / 2, strip / 2), caption, fill=_INK, font=font, anchor="lm")
    return sheet


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans (part of matplotlib), or a system font for letters that it lacks; warn once if none has them."""
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


def _draw_box(canvas: ImageDraw.ImageDraw, mark: Mark, line: int) -> None:
    x1, y1, x2, y2 = mark.box
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)  # the last pixel that the box covers
    halo = max(1, line // 2)  # a dark rim keeps light colours visible on a light background
    canvas.rectangle((x1 - halo, y1 - halo, x2 + halo, y2 + halo), outline=(0, 0, 0, 90), width=line + 2 * halo)
    if not mark.dashed:
        canvas.rectangle((x1, y1, x2, y2), outline=mark.color, width=line)
        return
    dash = 4 * line
    for start in np.arange(x1, x2, 2 * dash).tolist():
        for top in (y1, y2 - line + 1):
            canvas.rectangle((start, top, min(start + dash, x2), top + line - 1), fill=mark.color)
    for start in np.arange(y1, y2, 2 * dash).tolist():
        for left in (x1, x2 - line + 1):
            canvas.rectangle((left, start, left + line - 1, min(start + dash, y2)), fill=mark.color)


def _tag_text(mark: Mark, font: ImageFont.FreeTypeFont, room: int) -> tuple[str, float]:
    """Return name and score, at most `room` pixels wide, and the width; a long name is cut off, the score is kept."""
    name, score = printable(mark.name), "" if mark.score is None else f"  {mark.score:.2f}"
    width = font.getlength(name + score)
    if width <= room:
        return name + score, width
    shorter = [f"{name[:length]}...{score}" for length in range(len(name) - 1, -1, -1)]
    first = bisect_left(shorter, True, hi=len(shorter) - 1, key=lambda text: font.getlength(text) <= room)
    return shorter[first], font.getlength(shorter[first])


def _place_tag(
    text: str, box: Sequence[float], placed: np.ndarray, *, size: tuple[float, float], picture_size: tuple[int, int]
) -> _Tag:
    """Place a tag at the first position around the box without overlap with placed tags, or with the least overlap.

    Args:
        text: text of the tag.
        box: XYXY of the object.
        placed: XYXY of the placed tags [tags, 4].
        size: (width, height) of the tag.
        picture_size: (width, height) of the picture.
    """
    width, height = size
    x1, y1, x2, y2 = box
    corners = [
        (x1, y1 - height),  # above the top left corner
        (x1, y2),  # below
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x1, y1),  # inside
        (x2 - width, y2 - height),
    ]
    inside = [
        (min(max(x, 0), max(picture_size[0] - width, 0)), min(max(y, 0), max(picture_size[1] - height, 0)))
        for x, y in corners
    ]
    starts = np.array(inside)[:, None]  # [positions, 1, 2]
    sides = np.minimum(starts + size, placed[:, 2:]) - np.maximum(starts, placed[:, :2])  # [positions, tags, 2]
    overlaps = sides.clip(min=0).prod(axis=2).sum(axis=1)
    return _Tag(text, *inside[int(overlaps.argmin())], width, height)


def _draw_tag(
    canvas: ImageDraw.ImageDraw,
    tag: _Tag,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    red, green, blue = color
    ink = _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _PAPER
    place = (tag.x, tag.y, tag.x + tag.width - 1, tag.y + tag.height - 1)
    canvas.rounded_rectangle(place, radius=tag.height / 6, fill=(*color, 235))
    canvas.text((tag.x + tag.width / 2, tag.y + tag.height / 2), tag.text, fill=ink, font=font, anchor="mm")
