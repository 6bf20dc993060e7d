"""Detection of annotation files whose boxes are written in another way than their format prescribes.

A single box shows nothing. If many boxes of a file leave their images, or are inverted, and another common reading of
the same four numbers puts nearly all of them inside, the file was written with that reading.

Shape letters: B boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .source import Problem, Source

ENOUGH_INSIDE = 0.99
"""Minimum share of boxes inside their images for another reading to be suggested."""
FEW_INSIDE = 0.9
"""Share of boxes inside their images below which the reading of the format is doubted."""
_MIN_OUTSIDE = 5  # boxes; fewer may be outside by mistake
_TOLERANCE = 0.01  # of the side of the image: annotators overshoot the edge

Reading = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
_TOP_LEFT, _CORNERS, _CENTER = "x, y, width, height", "x1, y1, x2, y2", "center x, center y, width, height"
READINGS: dict[str, Reading] = {
    _TOP_LEFT: lambda x, y, w, h: (x, y, x + w, y + h),
    _CORNERS: lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    _CENTER: lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
    "y, x, height, width": lambda y, x, h, w: (x, y, x + w, y + h),
}
"""Functions from four columns of numbers, as in the file, to x1, y1, x2, y2, by the names of the columns."""
_PRESCRIBED = {"annotation": _TOP_LEFT, "object": _CORNERS, "line": _CENTER, "JSON line": _TOP_LEFT}
"""Columns by `Source.unit`: COCO, VOC, YOLO, Hugging Face; corners in other formats."""


def find_wrong_formats(source: Source, sizes: np.ndarray) -> Iterator[Problem]:
    """Yield an error for every annotation file whose boxes are written in another way than its format prescribes.

    The boxes of formats with one file per image are judged together.

    Args:
        source: split as read from its files.
        sizes: int32 [I, 2] (height, width) of the images, 0 for an image that cannot be read.
    """
    usable = np.isfinite(source.boxes).all(axis=1) & (sizes[source.image_of] > 0).all(axis=1)
    names = [source.annotation_file(i) for i in range(len(source.file_names))]
    if source.unit != "annotation":
        names = [str(source.annotation_files[0].parent) if source.annotation_files else str(source.root)] * len(names)
    numbers = {file: number for number, file in enumerate(dict.fromkeys(names))}
    file_of = np.array([numbers[name] for name in names], dtype=np.int64)
    for file, number in numbers.items():
        message = _describe(source, sizes, np.flatnonzero(usable & (file_of[source.image_of] == number)))
        if message is not None:
            yield Problem("wrong box format", file, "", message)


def _describe(source: Source, sizes: np.ndarray, rows: np.ndarray) -> str | None:
    """Return why the boxes at `rows` are not in the format of their file; None if they may be."""
    frames = sizes[source.image_of[rows]].astype(np.float64)[:, [1, 0, 1, 0]]
    boxes = source.boxes[rows]
    prescribed = _PRESCRIBED.get(source.unit, _CORNERS)
    if len(rows) >= _MIN_OUTSIDE and not source.relative and (np.abs(boxes) <= 1).all():
        return "all boxes are smaller than a pixel; expected pixels, found fractions of the image size"
    with np.errstate(over="ignore", invalid="ignore"):  # numbers may be huge
        columns = _columns(boxes * frames if source.relative else boxes, prescribed)
        inside = {
            name: int(_is_inside(np.stack(read(*columns), axis=1), frames).sum()) for name, read in READINGS.items()
        }
    outside = len(rows) - inside[prescribed]
    best = max(inside, key=inside.__getitem__)
    if (
        outside < _MIN_OUTSIDE
        or inside[prescribed] > FEW_INSIDE * len(rows)
        or inside[best] < ENOUGH_INSIDE * len(rows)
    ):
        return None
    return (
        f"{outside} of {len(rows)} boxes are inverted or leave their images. The format prescribes {prescribed}. Read"
        f" as {best}, {inside[best]} of {len(rows)} boxes are inside. Convert the boxes to {prescribed}"
        " (data.on_error=skip uses them as they are)"
    )


def _columns(boxes: np.ndarray, prescribed: str) -> tuple[np.ndarray, ...]:
    """Return the four numbers of boxes XYXY [B, 4] as they are in the file, each [B]."""
    x1, y1, x2, y2 = boxes.T
    if prescribed == _CORNERS:
        return x1, y1, x2, y2
    if prescribed == _CENTER:
        return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return x1, y1, x2 - x1, y2 - y1


def _is_inside(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return a mask [B] of the boxes XYXY [B, 4] that have an area and are inside their frames (W, H, W, H) [B, 4]."""
    tolerance = np.maximum(_TOLERANCE * frames, 1)
    is_inside = (boxes >= -tolerance) & (boxes <= frames + tolerance)
    has_area = boxes[:, 2:] > boxes[:, :2]
    return np.logical_and.reduce(np.concatenate([is_inside, has_area], axis=1), axis=1)
