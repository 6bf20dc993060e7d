"""Drawing of boxes with tags, which contain a name and a score.

A tag has the colour of its box. The first tags are placed first: outside the box if there is room, always inside the
picture, away from other tags, and where they hide little of all boxes. A tag without such a place is drawn smaller, and
if that does not help, it is left out. So the boxes of crowded pictures stay visible.

Shape letters: N boxes, T tags.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..formatting import printable
from .fonts import find_font, render, text_width

_INK, _PAPER = (17, 17, 17), (255, 255, 255)
_SMALLER = (1.0, 0.7)  # font sizes that are tried, relative to the usual one
_SMALLEST = 11  # pixels
_HIDDEN = 0.25  # largest part of a box that a tag may hide, summed over all boxes
_CELLS = 8  # cells of the maps of a picture in the height of a tag


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


class _Label(NamedTuple):
    parts: Sequence[Image.Image]  # rendered name and score
    gap: int  # between the parts, in pixels
    size: tuple[int, int]  # (width, height) of the tag


def draw_marks(picture: Image.Image, marks: Sequence[Mark], *, text_size: int | None = None) -> None:
    """Draw boxes and their tags onto a picture; the first marks are drawn on top, and their tags are placed first.

    Args:
        picture: picture to draw on; it is modified.
        marks: boxes to draw.
        text_size: font size in pixels; None derives it from the size of the picture.
    """
    side = (picture.width * picture.height) ** 0.5
    line, text_size = max(2, round(0.0028 * side)), text_size or max(_SMALLEST, round(0.021 * side))
    canvas = ImageDraw.Draw(picture, "RGBA")
    for mark in reversed(marks):
        _draw_box(canvas, mark, line)
    with_tags = [mark for mark in marks if mark.name or mark.score is not None]
    sizes = dict.fromkeys(max(min(_SMALLEST, text_size), round(text_size * factor)) for factor in _SMALLER)
    labels = [_render_labels(with_tags, size, line, picture.width - 4 * line) for size in sizes]
    boxes = np.array([mark.box for mark in marks], dtype=np.float64).reshape(-1, 4)
    tagged = np.array([mark.box for mark in with_tags], dtype=np.float64).reshape(-1, 4)
    for i, label, place in reversed(list(_place_tags(boxes, tagged, labels, picture.size))):
        _draw_tag(canvas, label, place, with_tags[i].color, line)


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


def _render_labels(marks: Sequence[Mark], text_size: int, line: int, room: int) -> list[_Label]:
    """Render names and scores, at most `room` pixels wide; a long name is cut off, the score is kept."""
    height = round(find_font(text_size).getbbox("Ag")[3])
    labels: list[_Label] = []
    for mark in marks:
        name, score = printable(mark.name), "" if mark.score is None else f"{mark.score:.2f}"
        font = find_font(text_size, name)
        gap = round(text_width("  ", font)) if name and score else 0
        name = _cut(name, font, room - gap - text_width(score, font))
        parts = [render(text, font, height) for text in (name, score) if text]
        labels.append(_Label(parts, gap, (sum(part.width for part in parts) + gap + 4 * line, height + 2 * line)))
    return labels


def _cut(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Cut off the end of a text that is wider than `room` pixels."""
    if text_width(text, font) <= room:
        return text
    shorter = [f"{text[:length]}..." for length in range(len(text) - 1, -1, -1)]
    return shorter[bisect_left(shorter, True, hi=len(shorter) - 1, key=lambda text: font.getlength(text) <= room)]


def _place_tags(
    boxes: np.ndarray, tagged: np.ndarray, labels: Sequence[Sequence[_Label]], picture_size: tuple[int, int]
) -> Iterator[tuple[int, _Label, tuple[int, int]]]:
    """Place tags, and yield the positions of the placed ones, their labels and their top left corners.

    Args:
        boxes: XYXY of all objects, [N, 4].
        tagged: XYXY of the objects with tags, [T, 4].
        labels: T labels of every font size, in the order in which the sizes are tried.
        picture_size: (width, height) of the picture.
    """
    if not len(tagged):
        return
    cell = max(1, labels[0][0].size[1] // _CELLS)
    shape = np.ceil(np.array(picture_size) / cell).astype(np.int64)
    hidden = _HiddenParts(np.rint(boxes / cell).astype(np.int64), shape)
    options = []  # for every font size: [T, 6, 2] corners, [T, 6, 4] cells, [T, 6] whether little is hidden
    for of_size in labels:
        sizes = np.array([label.size for label in of_size])
        corners = _find_corners(tagged, sizes, picture_size)
        ends = np.minimum(corners + sizes[:, None], picture_size)  # a tag may be higher than a very flat picture
        cells = np.concatenate([corners // cell, -(-ends // cell)], axis=2)
        options.append((corners, cells, hidden.inside(cells) <= _HIDDEN))
    taken = np.zeros(shape[::-1], dtype=bool)
    for i in range(len(tagged)):
        for of_size, (corners, cells, is_possible) in zip(labels, options, strict=True):
            place = _find_free(taken, cells[i], is_possible[i])
            if place is not None:
                x1, y1, x2, y2 = cells[i, place]
                taken[y1:y2, x1:x2] = True
                x, y = corners[i, place].tolist()
                yield i, of_size[i], (x, y)
                break


def _find_free(taken: np.ndarray, rectangles: np.ndarray, is_possible: np.ndarray) -> int | None:
    """Return the position of the first possible rectangle XYXY of which no cell is taken; None if there is none."""
    for place in np.flatnonzero(is_possible).tolist():
        x1, y1, x2, y2 = rectangles[place].tolist()
        if not taken[y1:y2, x1:x2].any():
            return place
    return None


def _find_corners(boxes: np.ndarray, sizes: np.ndarray, picture_size: tuple[int, int]) -> np.ndarray:
    """Return the six top left corners that tags may have in whole pixels, best first, int64 [T, 6, 2].

    Args:
        boxes: XYXY of the objects, [T, 4].
        sizes: (width, height) of the tags, [T, 2].
        picture_size: (width, height) of the picture.
    """
    (x1, y1, x2, y2), (width, height) = boxes.T, sizes.T
    left, right, above, below = x1, x2 - width, y1 - height, y2
    places = [(left, above), (left, below), (right, above), (right, below), (left, y1), (right, y2 - height)]
    corners = np.rint(places).astype(np.int64).transpose(2, 0, 1)
    return corners.clip(0, np.maximum(np.array(picture_size) - sizes, 0)[:, None])


class _HiddenParts:
    """Sums of the parts of boxes that rectangles hide, from a summed-area table.

    Args:
        boxes: XYXY in cells, int64 [N, 4].
        size: (width, height) of the picture in cells.
    """

    def __init__(self, boxes: np.ndarray, size: np.ndarray):
        starts = boxes[:, :2].clip(0, size - 1)
        ends = np.maximum(boxes[:, 2:].clip(0, size), starts + 1)
        (x1, y1), (x2, y2) = starts.T, ends.T
        shares = 1 / (ends - starts).prod(axis=1)  # of a cell in its box
        changes = np.zeros((size[1] + 1, size[0] + 1))
        for y, x, sign in ((y1, x1, 1), (y1, x2, -1), (y2, x1, -1), (y2, x2, 1)):
            np.add.at(changes, (y, x), sign * shares)
        of_cells = changes.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
        self._sums = np.pad(of_cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))

    def inside(self, rectangles: np.ndarray) -> np.ndarray:
        """Return the sums for rectangles XYXY in cells of the picture, int64 [..., 4]."""
        (x1, y1, x2, y2), sums = np.moveaxis(rectangles, -1, 0), self._sums
        return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]


def _draw_tag(
    canvas: ImageDraw.ImageDraw, label: _Label, place: tuple[int, int], color: tuple[int, int, int], line: int
) -> None:
    red, green, blue = color
    ink = _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _PAPER
    (x, y), (width, height) = place, label.size
    canvas.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius=height / 6, fill=(*color, 235))
    x += 2 * line
    for part in label.parts:
        canvas.bitmap((x, y + line), part, fill=ink)
        x += part.width + label.gap
