"""Rows of YOLO label files: boxes, polygons, and boxes followed by keypoints, a confidence or a track id.

The file does not name the kind of its rows, and a single row may allow several readings. Therefore the rows of a whole
split are parsed first, and then read together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..choices import YoloRows
from ..errors import DataError
from ..formatting import plural
from .rows import Row

_Box = tuple[float, float, float, float]
_IMAGE = (0.0, 0.0, 1.0, 1.0)
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
        points: all values, as polygon or as box with keypoints; empty unless they are asked for.
        pose: share of the values after the first four that may be keypoints `x y` or `x y visibility` of `box`, in 0
            to 1.
        is_oriented_box: True if the values are the four corners of a parallelogram.
        has_score: True if the values after the first four may be a confidence, a track id, or both.
        text: start of the line, for messages.
    """

    image: int
    number: int
    label: int
    num_values: int
    box: _Box
    polygon: _Box | None = None
    points: tuple[float, ...] = ()
    pose: float = 0.0
    is_oriented_box: bool = False
    has_score: bool = False
    text: str = ""


def parse_row(line: str, *, image: int, number: int, num_classes: int, with_points: bool = False) -> LabelRow:
    """Parse one line of a label file; `with_points` keeps all values of rows that are longer than a box.

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
        points=tuple(values) if with_points else (),
        pose=max(_keypoint_share(values[4:], box, length) for length in (2, 3)),
        is_oriented_box=_is_oriented_box(values),
        has_score=_is_score(values[4:], box),
        text=line[:60],
    )


def read_poses(rows: Sequence[LabelRow], count: int, length: int) -> tuple[list[Row], list[tuple[LabelRow, str]]]:
    """Read rows as boxes followed by keypoints.

    A keypoint without visibility is visible, unless it is in the upper left corner (0, 0), which stands for a missing
    one. A row that is only a box has no annotated keypoints.

    Args:
        rows: all rows of the split, with their points.
        count: number P of keypoints.
        length: numbers per keypoint, 2 or 3.

    Returns:
        The boxes with their keypoints, and the rows that cannot be read, each with the reason.
    """
    poses, broken = [], []
    for row in rows:
        values = row.points[4:]
        points = [values[i : i + length] for i in range(0, len(values), length)]
        if len(values) not in (0, count * length):
            reason = f"expected 4 numbers of the box and {count} x {length} of the keypoints (kpt_shape)"
        elif length == 3 and any(visibility not in (0, 1, 2) for *_, visibility in points):
            reason = "expected x, y and visibility (0, 1 or 2) of every keypoint"
        elif not all(math.isfinite(value) for value in values):
            reason = "expected finite numbers"
        else:
            keypoints = [v for x, y, *rest in points for v in (x, y, *(rest or [2.0 if x or y else 0.0]))]
            poses.append(Row(row.image, row.number, row.label, row.box, keypoints=keypoints))
            continue
        broken.append((row, f"{reason}, found {row.num_values} numbers: {row.text!r}"))
    return poses, broken


def read_rows(rows: Sequence[LabelRow], kind: YoloRows, *, where: str) -> tuple[list[Row], list[LabelRow]]:
    """Read the rows of a split as boxes; polygons are converted to their bounding boxes.

    Args:
        rows: all rows of the split.
        kind: reading of rows with more than four values; `auto`: derived from the values of all rows.
        where: label files, for messages.

    Returns:
        The boxes, and the rows that are neither a box nor a polygon.

    Raises:
        DataError: `kind` is `auto`, and the rows may be polygons as well as boxes followed by keypoints.
    """
    max_box_values = _max_box_values(rows, where) if kind == "auto" else math.inf if kind == "boxes" else 4
    boxes, broken = [], []
    for row in rows:
        is_polygon = row.num_values > max_box_values
        box = row.polygon if is_polygon else row.box
        if box is None:
            broken.append(row)
        else:
            boxes.append(Row(row.image, row.number, row.label, box, polygon=row.points if is_polygon else ()))
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
    _check_unambiguous([row for row in rows if row.num_values >= 6], where)
    return 5


def _check_unambiguous(rows: Sequence[LabelRow], where: str) -> None:
    """Check that rows with at least six values can be read as polygons only.

    All poses of a data set have the same length, and their keypoints are inside the box, except for a few that were
    placed wrongly. Most polygons would be boxes that leave the image or do not contain the other points.

    Raises:
        DataError: most rows have the same length, and most values of these may be keypoints.
    """
    num_values, count = Counter(row.num_values for row in rows).most_common(1)[0] if rows else (0, 0)
    same_length = [row for row in rows if row.num_values == num_values]
    is_pose = 2 * sum(row.pose for row in same_length) > count
    if 2 * count <= len(rows) or not is_pose or 2 * sum(row.is_oriented_box for row in same_length) > count:
        return
    raise DataError(
        f"{where}: {plural(count, 'row')} with {num_values} numbers after the class may be polygons (x1 y1 x2 y2 x3 y3"
        " ...) or boxes followed by keypoints (cx cy width height, then x y or x y visibility of each keypoint). Set"
        " data.yolo_rows=polygons or data.yolo_rows=boxes; kpt_shape in data.yaml also stands for boxes"
    )


def _is_inside(x: float, y: float, box: _Box = _IMAGE) -> bool:
    x1, y1, x2, y2 = box
    return x1 - _ROUNDING <= x <= x2 + _ROUNDING and y1 - _ROUNDING <= y <= y2 + _ROUNDING


def _polygon_box(values: list[float]) -> _Box | None:
    xs, ys = values[::2], values[1::2]
    if len(xs) != len(ys) or len(xs) < 3 or not all(map(_is_inside, xs, ys)):
        return None
    return min(xs), min(ys), max(xs), max(ys)


def _keypoint_share(values: list[float], box: _Box, length: int) -> float:
    """Return the share of points of `length` values that may be keypoints of a box; 0 if the box leaves the image.

    Keypoints are inside their box, or zeros if they are missing. Visibilities are in 0 to 2.
    """
    if len(values) % length or not (_is_inside(*box[:2]) and _is_inside(*box[2:])):
        return 0.0
    points = [values[i : i + length] for i in range(0, len(values), length)]
    are_keypoints = [
        (x == y == 0 or _is_inside(x, y, box)) and all(0 <= v <= 2 for v in visibility) for x, y, *visibility in points
    ]
    return sum(are_keypoints) / len(points)


def _is_oriented_box(values: list[float]) -> bool:
    """Return True for four corners in order, so that both diagonals have the same centre."""
    if len(values) != 8:
        return False
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    return abs(x1 + x3 - x2 - x4) < _ROUNDING and abs(y1 + y3 - y2 - y4) < _ROUNDING


def _is_score(values: list[float], box: _Box) -> bool:
    """Return True for a single value, or for a fraction and a whole number after a box inside the image."""
    x1, y1, x2, y2 = box
    return len(values) == 1 or (
        len(values) == 2
        and any(value.is_integer() for value in values)
        and (x1 < x2 and y1 < y2 and _is_inside(x1, y1) and _is_inside(x2, y2))
    )
