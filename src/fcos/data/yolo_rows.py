"""Rows of YOLO label files: boxes, polygons, and boxes followed by keypoints, a confidence or a track id.

The file does not name the kind of its rows, and a single row may allow several readings. Therefore the rows of a whole
split are parsed first, and then read together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..choices import YoloRows
from ..errors import DataError
from .source import Row

_Box = tuple[float, float, float, float]
_ROUNDING = 0.01  # tools write coordinates that exceed the image by a rounding error
_MIN_PIXELS, _MAX_PIXELS = 1.5, 1e6  # values in this range are pixels, not fractions


class LabelRow(NamedTuple):
    """Row of a label file with all its readings. Boxes are XYXY in fractions of the image.

    Attributes:
        image: position of the image.
        number: number of the line, from 1.
        label: class, from 0.
        num_values: number of values after the class.
        box: the first four values as box `cx cy width height`.
        polygon: bounding box of the values as points `x y`; None if they are not the points of a polygon.
        has_keypoints: True if the values after the first four may be keypoints `x y` or `x y visibility` inside `box`.
        has_score: True if the values after the first four may be a confidence, a track id, or both.
        text: start of the line, for messages.
    """

    image: int
    number: int
    label: int
    num_values: int
    box: _Box
    polygon: _Box | None = None
    has_keypoints: bool = False
    has_score: bool = False
    text: str = ""


def parse_row(line: str, *, image: int, number: int, num_classes: int) -> LabelRow:
    """Parse one line of a label file.

    Raises:
        ValueError: the line does not consist of a known class and at least four numbers, or is in pixels.
    """
    label_text, *texts = line.split()
    try:
        values, label = [float(text) for text in texts], float(label_text)
    except ValueError:
        values, label = [], -1.0
    if len(values) < 4 or not label.is_integer():
        raise ValueError(f"expected `class cx cy width height` in numbers, found {line!r:.60}")
    if not 0 <= label < num_classes:
        raise ValueError(f"class {label_text:.20} is unknown; expected 0 to {num_classes - 1}")
    if _MIN_PIXELS < max(values[:4]) < _MAX_PIXELS:
        raise ValueError(f"expected fractions of the image (0 to 1), found {line!r:.60}; are these pixels?")
    cx, cy, w, h = values[:4]
    box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if len(values) == 4:
        return LabelRow(image, number, int(label), 4, box)
    return LabelRow(
        image,
        number,
        int(label),
        len(values),
        box,
        polygon=_polygon_box(values),
        has_keypoints=any(_are_keypoints(values[4:], box, length) for length in (2, 3)),
        has_score=_is_score(values[4:], box),
        text=line[:60],
    )


def read_rows(rows: Sequence[LabelRow], kind: YoloRows, *, where: str) -> tuple[list[Row], list[LabelRow]]:
    """Read the rows of a split as boxes; polygons are converted to their bounding boxes.

    Args:
        rows: all rows of the split.
        kind: reading of rows with more than four values; `auto`: derived from the values of all rows.
        where: label files, for messages.

    Returns:
        The boxes, and the rows that are neither a box nor a polygon.

    Raises:
        DataError: `kind` is `auto`, and all rows may be polygons as well as boxes followed by keypoints.
    """
    max_box_values = _max_box_values(rows, where) if kind == "auto" else math.inf if kind == "boxes" else 4
    boxes, broken = [], []
    for row in rows:
        box = row.box if row.num_values <= max_box_values else row.polygon
        if box is None:
            broken.append(row)
        else:
            boxes.append(Row(row.image, row.number, row.label, box))
    return boxes, broken


def _max_box_values(rows: Sequence[LabelRow], where: str) -> int:
    """Return the largest number of values that a box may have in these rows; longer rows are polygons.

    Beside longer polygons, a row of six values that may be a triangle counts as one, not as a box with a confidence.
    """
    has_polygons = any(row.num_values > 6 and row.polygon for row in rows)
    short_rows = [row for row in rows if row.num_values == 6 or (row.num_values == 5 and not has_polygons)]
    scores = [row for row in short_rows if row.has_score and not (has_polygons and row.polygon)]
    if 2 * len(scores) > len(short_rows):
        return 6
    counts = {row.num_values for row in rows}
    if len(counts) == 1 and max(counts) > 4 and all(row.has_keypoints for row in rows):
        raise DataError(
            f"{where}: every row has {max(counts)} numbers after the class. They may be polygons, or boxes followed by"
            " keypoints or other numbers. Set data.yolo_rows=polygons or data.yolo_rows=boxes, or add kpt_shape to"
            " data.yaml if they are keypoints"
        )
    return 5


def _is_inside(x: float, y: float, box: _Box = (0.0, 0.0, 1.0, 1.0)) -> bool:
    x1, y1, x2, y2 = box
    return x1 - _ROUNDING <= x <= x2 + _ROUNDING and y1 - _ROUNDING <= y <= y2 + _ROUNDING


def _polygon_box(values: list[float]) -> _Box | None:
    xs, ys = values[::2], values[1::2]
    if len(xs) != len(ys) or len(xs) < 3 or not all(map(_is_inside, xs, ys)):
        return None
    return min(xs), min(ys), max(xs), max(ys)


def _are_keypoints(values: list[float], box: _Box, length: int) -> bool:
    """Return True for keypoints of `length` values inside the box; a missing keypoint is written as zeros."""
    points = [values[i : i + length] for i in range(0, len(values), length)]
    return len(values) % length == 0 and all(
        (x == y == 0 or _is_inside(x, y, box)) and all(0 <= v <= 2 for v in visibility) for x, y, *visibility in points
    )


def _is_score(values: list[float], box: _Box) -> bool:
    """Return True for a single value, or for a fraction and a whole number after a box inside the image."""
    x1, y1, x2, y2 = box
    return len(values) == 1 or (
        len(values) == 2
        and any(value.is_integer() for value in values)
        and (x1 < x2 and y1 < y2 and _is_inside(x1, y1) and _is_inside(x2, y2))
    )
