"""Masks and keypoints in COCO files."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..masks import Masks, outline
from .opening import MAX_PIXELS
from .values import parse_integer

SEGMENTATION = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in numbers, or an RLE with size and counts"
"""Expected value of `segmentation`, for messages."""
KEYPOINTS = "a list of x, y and visibility (0, 1 or 2) of every keypoint"
"""Expected value of `keypoints`, for messages."""


_LARGEST = 1e9  # pixels; larger coordinates are no positions, and could not be scaled in float32


class KeypointNames(NamedTuple):
    """Names of the keypoints of a file, and the pairs of connected ones, counted from 0."""

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()


class Segmentation(NamedTuple):
    """Mask of one object.

    Attributes:
        rings: flat coordinates x1, y1, x2, y2, ... of every ring, float64.
        size: (height, width) of the frame of an RLE; None for polygons.
    """

    rings: list[np.ndarray]
    size: tuple[int, int] | None = None


def drop_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the unused segmentation of a JSON object during parsing. Segmentations make up most of a large file."""
    entry.pop("segmentation", None)
    return entry


def pack_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Convert the polygons of a JSON object to arrays during parsing, which need a quarter of the memory of lists."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and polygons and isinstance(polygons[0], list):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # reported when the annotation is read
            entry["segmentation"] = [np.array(ring, dtype=np.float64) for ring in polygons]
    return entry


def parse_segmentation(value: Any) -> Segmentation:
    """Read a segmentation: polygons, a single flat polygon, or a compressed or uncompressed RLE.

    Polygons with fewer than three points cover nothing and are left out, as in the original.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, dict):
        return _parse_rle(value)
    if not isinstance(value, list):
        raise ValueError("expected polygons or an RLE")
    if value and not isinstance(value[0], list | np.ndarray):
        value = [value]
    try:
        rings = [np.asarray(ring, dtype=np.float64) for ring in value]
    except (TypeError, OverflowError) as error:
        raise ValueError("expected numbers") from error
    if not all(ring.ndim == 1 and ring.size % 2 == 0 and (np.abs(ring) < _LARGEST).all() for ring in rings):
        raise ValueError("expected pairs of finite numbers")
    return Segmentation([ring for ring in rings if ring.size >= 6])


def _parse_rle(value: dict[str, Any]) -> Segmentation:
    from hotcoco import mask as rle

    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
        raise ValueError("expected size (height, width) and counts")
    height, width = map(parse_integer, size)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError("expected the size of an image")
    if isinstance(counts, list):
        counts = [parse_integer(count) for count in counts]
        if min(counts, default=0) < 0 or sum(counts) > height * width:
            raise ValueError("expected runs that fit into the image")
    elif not re.fullmatch("[0-o]*", counts):  # six bits per character
        raise ValueError("expected a compressed RLE")
    bitmap = rle.decode({"size": [height, width], "counts": counts}).astype(bool)
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Segmentation([], (height, width))
    corner = np.array([columns[0], rows[0]])
    ring = outline(bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]) + corner
    return Segmentation([ring.reshape(-1)], (height, width))


def masks_of(annotations: Sequence[dict[str, Any]]) -> Masks:
    """Build the masks of annotations whose `segmentation` is parsed, or missing."""
    return Masks.from_polygons([a["segmentation"].rings if a.get("segmentation") else [] for a in annotations])


def parse_keypoints(value: Any) -> np.ndarray | None:
    """Read keypoints: float32 [P, 3], x, y and visibility; None for an empty list, which means that there are none.

    Raises:
        ValueError: the value is not a list of triples of finite numbers, or a visibility is not 0, 1 or 2.
    """
    if isinstance(value, list | np.ndarray) and not len(value):
        return None
    try:
        keypoints = np.array(value if isinstance(value, list) else None, dtype=np.float64).reshape(-1, 3)
    except (TypeError, OverflowError) as error:
        raise ValueError("expected numbers") from error
    if not ((np.abs(keypoints) < _LARGEST).all() and np.isin(keypoints[:, 2], (0, 1, 2)).all()):
        raise ValueError("expected finite numbers, and visibilities 0, 1 or 2")
    return keypoints.astype(np.float32)


def keypoint_names(
    annotations: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]], *, where: str
) -> KeypointNames:
    """Return the names of the keypoints and the skeleton; both are empty if no annotation has keypoints.

    Args:
        annotations: annotations with parsed `keypoints`. If no category names them, the names are 0, 1, ..., as many as
            most annotations have.
        categories: categories, of which some have the lists `keypoints` and `skeleton` (pairs counted from 1).
        where: file, for messages.

    Raises:
        DataError: categories have different keypoints.
    """
    counts = Counter(len(a["keypoints"]) for a in annotations if a.get("keypoints") is not None)
    if not counts:
        return KeypointNames()
    named = [c for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]]
    if not named:
        return KeypointNames(tuple(map(str, range(counts.most_common(1)[0][0]))))
    lists = {tuple(map(str, c["keypoints"])) for c in named}
    if len(lists) > 1:
        lengths = ", ".join(f"{c['name']} ({len(c['keypoints'])})" for c in named)
        raise DataError(f"{where}: all categories with keypoints need the same ones, found {lengths:.300}")
    (names,) = lists
    return KeypointNames(names, _skeleton(named[0].get("skeleton"), len(names)))


def stack_keypoints(annotations: Sequence[dict[str, Any]], count: int) -> np.ndarray:
    """Stack the parsed `keypoints` of annotations: float32 [B, count, 3], zeros where they are missing."""
    values = np.zeros((len(annotations), count, 3), dtype=np.float32)
    for row, a in zip(values, annotations, strict=True):
        if a.get("keypoints") is not None:
            row[:] = a["keypoints"]
    return values


def _skeleton(value: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of connected keypoints, counted from 0; pairs that do not name two keypoints are left out."""
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2] if isinstance(value, list) else []
    return tuple((a - 1, b - 1) for a, b in pairs if all(type(i) is int and 1 <= i <= count for i in (a, b)))
