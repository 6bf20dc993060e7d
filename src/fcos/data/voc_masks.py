"""Instance masks of Pascal VOC: PNG files in SegmentationObject whose values number the objects of the XML file.

Value i marks the pixels of the i-th object; 0 is background, and 255 (void) the border of objects. Such a file contains
the values as a palette or as grey levels, or, as written by CVAT and Datumaro, the colours of VOC's palette.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 Development Kit, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from ..masks import outline
from .opening import read_annotation_image
from .rows import Row
from .source import Problem

_VOID = 255
_MATCHING_IOU = 0.5  # of the pixels' extent and a box, from which on an instance certainly belongs to the box


def add_masks(
    rows: Sequence[Row], file: Path, *, num_objects: int, size: tuple[int, int]
) -> tuple[list[Row], list[Problem], tuple[int, int]]:
    """Add the masks of an image to its objects.

    An object whose pixels are those of another one, by their extent, is left out with a problem: the file may number
    the objects in another order. Objects without pixels get no mask.

    Args:
        rows: objects of the image that could be read.
        file: PNG file of the instances.
        num_objects: number of objects in the XML file.
        size: (height, width) of the image in the XML file, (0, 0) if unknown.

    Returns:
        The objects, their problems, and the (height, width) of the PNG file.

    Raises:
        DataError: the PNG file cannot be read, or has another size, or other colours than VOC's palette. The message
            starts with its path.
    """
    instances = _read_instances(file, size)
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    complete, problems = [], []
    for number in np.unique(instances[instances > num_objects]).tolist():
        message = (
            f"marks pixels of object {number}, but the XML file has {num_objects}; remove the pixels, or add the object"
        )
        problems.append(Problem("mask without object", str(file), f"value {number}", message))
    for i, row in enumerate(rows):
        ys, xs = np.nonzero(instances == row.number)
        if not len(xs):
            complete.append(row)
            continue
        x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        ious = _ious(np.array([x1, y1, x2, y2]), boxes)
        best = int(np.argmax(ious))
        if ious[i] == 0 or (ious[i] < _MATCHING_IOU <= ious[best]):
            other = f", but match object {rows[best].number}" if ious[best] >= _MATCHING_IOU else ""
            message = (
                f"the pixels of object {row.number} span {x1}, {y1}, {x2}, {y2} and do not match its box"
                f" {', '.join(f'{v:g}' for v in row.box)}{other}; the values must number the objects of the XML file in"
                " its order"
            )
            problems.append(Problem("mask of another object", str(file), f"value {row.number}", message))
            continue
        ring = outline(instances[y1:y2, x1:x2] == row.number) + np.array([x1, y1])
        complete.append(row._replace(polygon=ring.reshape(-1).tolist()))
    return complete, problems, (instances.shape[0], instances.shape[1])


def _read_instances(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the number of the object of every pixel, int64 [H, W], 0 for none; see `add_masks`."""
    values = read_annotation_image(file, _to_array).astype(np.int64)
    height, width = values.shape[:2]
    if size not in ((0, 0), (height, width)):
        raise DataError(f"{file}: expected {size[1]}x{size[0]} pixels, as in the XML file, found {width}x{height}")
    if values.ndim == 3:
        palette = _number_of_color()
        colors, index = np.unique(values @ [1 << 16, 1 << 8, 1], return_inverse=True)
        numbers = [palette.get(color, -1) for color in colors.tolist()]
        if -1 in numbers:
            raise DataError(f"{file}: expected numbers of objects or the colours of VOC's palette, found other colours")
        values = np.array(numbers)[index].reshape(height, width)
    return np.where(values == _VOID, 0, values)


def _to_array(image: Image.Image) -> np.ndarray:
    """Return the values [H, W] of a palette or grey image, or the colours [H, W, 3] of another one."""
    return np.asarray(image.convert("RGB") if len(image.getbands()) > 1 else image)


def _number_of_color() -> dict[int, int]:
    """Return the numbers 0..255 by their colours (0xRRGGBB) in VOC's palette.

    Red, green and blue take the bits of a number in turn, the lowest as their highest bit.
    """
    numbers = {}
    for number in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        red, green, blue = channels
        numbers[red << 16 | green << 8 | blue] = number
    return numbers


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of a box [4] with boxes [B, 4], float64 [B]; 0 for boxes with invalid coordinates."""
    with np.errstate(invalid="ignore", over="ignore"):
        sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
        overlap = sides.clip(0).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return np.nan_to_num(overlap / ((box[2:] - box[:2]).prod() + areas - overlap))
