"""Boxes of a CSV that are lists of four numbers in one column, such as `[10, 20, 30, 40]`.

The title of the column may tell the format: `bbox_xyxy` for corners, `bbox_xywh` for the upper left corner with width
and height. With another title, such as `bbox`, the format is that of the only reading that is possible for all boxes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import DataError
from .values import parse_number, parse_size

CORNERS, EXTENT = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
"""Columns of a box in the two formats."""
LISTS = (("corners",), ("extent",), ("box",))
"""Columns of lists: corners, extent, or one of the two."""
_TOLERANCE = 1.0  # pixel; annotators overshoot the edge


def split_lists(path: Path, column: str, title: str, rows: Sequence[MutableMapping[str, str]]) -> tuple[str, ...]:
    """Add the four columns of the boxes to every row, and return their names: `CORNERS` or `EXTENT`.

    A value that is not a list of four numbers becomes the first of the columns, so that its row is reported. Boxes that
    are possible in no format, for example because of a NaN, do not decide the format, and are reported later.

    Args:
        path: the CSV, for messages.
        column: one of `LISTS`.
        title: title of the column in the file.
        rows: values by column; modified in place.

    Raises:
        DataError: the boxes are possible in both formats, or in none.
    """
    boxes = [_parse_list(row.get(column, "")) for row in rows]
    keys = {"corners": CORNERS, "extent": EXTENT}.get(column)
    if keys is None:
        readings = [
            {keys for keys in (CORNERS, EXTENT) if _is_possible(box, row, keys is CORNERS)}
            for box, row in zip(boxes, rows, strict=True)
            if box is not None
        ]
        deciding = [possible for possible in readings if possible]
        possible = [keys for keys in (CORNERS, EXTENT) if all(keys in keys_of_row for keys_of_row in deciding)]
        if len(possible) != 1 and readings:
            known = "both are possible" if possible else "some boxes are only possible as one, some only as the other"
            raise DataError(
                f"{path}: the lists in column {title!r:.60} may be x1, y1, x2, y2 or x, y, width, height; {known}."
                " Rename the column to bbox_xyxy or to bbox_xywh"
            )
        keys = possible[0]
    for row, box in zip(rows, boxes, strict=True):
        text = row.get(column, "")
        unreadable = (text if _inner(text) else "", "", "", "")
        row.update(zip(keys, unreadable if box is None else map(str, box), strict=True))
    return keys


def require_same_boxes(
    path: Path, column: str, title: str, keys: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]]
) -> None:
    """Check that the lists in a column are the boxes in four other columns, up to rounding to whole pixels.

    Args:
        path: the CSV, for messages.
        column: one of `LISTS`.
        title: title of the column in the file.
        keys: the four columns, `CORNERS` or `EXTENT`.
        rows: line number and values by column.

    Raises:
        DataError: a row has two different boxes.
    """
    for line, row in rows:
        box, other = _parse_list(row.get(column, "")), _parse_list(" ".join(row.get(key) or "?" for key in keys))
        if box is None or other is None:  # reported later, or a row without box
            continue
        corners = other if keys == CORNERS else _to_corners(other)
        forms = {"corners": (box,), "extent": (_to_corners(box),)}.get(column, (box, _to_corners(box)))
        if not any(max(abs(a - b) for a, b in zip(form, corners, strict=True)) <= _TOLERANCE for form in forms):
            raise DataError(
                f"{path}: expected one box per row, found two different ones in line {line}: {', '.join(keys)} ="
                f" {' '.join(f'{value:g}' for value in other)}, and {title!r:.60} ="
                f" {' '.join(f'{value:g}' for value in box)}; remove or rename the wrong columns"
            )


def _to_corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _inner(text: str) -> str:
    return text.strip("[](){} \t")


def _parse_list(text: str) -> list[float] | None:
    """Return the four numbers of a list such as `[1, 2, 3, 4]`, `(1 2 3 4)` or `1;2;3;4`; None for another text."""
    parts = [part for part in re.split(r"[\s,;]+", _inner(text)) if part]
    with suppress(ValueError):
        return [parse_number(part) for part in parts] if len(parts) == 4 else None
    return None


def _is_possible(box: Sequence[float], row: Mapping[str, str], is_corners: bool) -> bool:
    """Return whether four numbers are a box with an area, inside its image if the row has the size of the image."""
    a, b, x2, y2 = box if is_corners else _to_corners(box)
    height, width = parse_size(row.get("image height"), row.get("image width"))
    is_inside = not height or (x2 <= width + _TOLERANCE and y2 <= height + _TOLERANCE)
    return x2 > a and y2 > b and is_inside
