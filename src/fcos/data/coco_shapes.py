"""Masks and keypoints in COCO files."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from ..formatting import quote
from ..keypoints import UNNAMED, KeypointLayout
from ..masks import Masks, outline, to_text
from .opening import MAX_PIXELS
from .source import WITHOUT_KEYPOINTS
from .values import encodable, parse_integer

SEGMENTATION = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in numbers, or an RLE with size and counts"
"""Expected value of `segmentation`, for messages."""
KEYPOINTS = "a list of x, y and visibility (0, 1 or 2) of every keypoint"
"""Expected value of `keypoints`, for messages."""


_LARGEST = 1e9  # pixels; larger coordinates are no positions, and could not be scaled in float32


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
    runs = _decompress(counts) if isinstance(counts, str) else [parse_integer(count) for count in counts]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"expected runs that fill the {width}x{height} frame, {height * width} pixels in total")
    bitmap = rle.decode({"size": [height, width], "counts": runs}).astype(bool)
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Segmentation([], (height, width))
    corner = np.array([columns[0], rows[0]])
    ring = outline(bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]) + corner
    return Segmentation([ring.reshape(-1)], (height, width))


def _decompress(text: str) -> list[int]:
    """Return the runs of a compressed RLE.

    A number is a sequence of characters with five bits each, lowest first; a sixth bit marks all but the last one. From
    the fourth number on, the run two before is subtracted.

    Raises:
        ValueError: the text is no compressed RLE.

    Source: pycocotools (BSD-2), `rleFrString`.
    """
    if not re.fullmatch("([P-o]{0,12}[0-O])*", text):
        raise ValueError("expected a compressed RLE")
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << 1 + shift - 5
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def to_segmentation(rings: Sequence[np.ndarray], size: tuple[int, int]) -> list[list[float]] | dict[str, Any]:
    """Return the segmentation that is read as the same rings: an RLE for the outline of pixels, otherwise polygons.

    Args:
        rings: rings of an object, each [points, 2].
        size: (height, width) of the image.
    """
    if len(rings) == 1 and _may_be_outline(rings[0]):
        code = to_text(Masks.from_polygons([[rings[0].reshape(-1)]]).to_rles(size)[0])
        if [ring.tolist() for ring in _parse_rle(code).rings] == [rings[0].reshape(-1).tolist()]:
            return code
    return [ring.reshape(-1).tolist() for ring in rings]


def _may_be_outline(ring: np.ndarray) -> bool:
    """Return whether a ring [points, 2] starts along a row of pixels, ends where it starts, and has whole numbers."""
    return bool(ring[0, 1] == ring[1, 1] and (ring[0] == ring[-1]).all() and (ring == ring.round()).all())


def masks_of(annotations: Sequence[dict[str, Any]]) -> Masks:
    """Build the masks of annotations whose `segmentation` is parsed, or missing."""
    return Masks.from_polygons([a["segmentation"].rings if a.get("segmentation") else [] for a in annotations])


def parse_keypoints(value: Any) -> np.ndarray | None:
    """Read keypoints: float64 [P, 3], x, y and visibility; None for an empty list, which means that there are none.

    Raises:
        ValueError: the value is not a list of triples of finite numbers, or a visibility is not 0, 1 or 2.
    """
    if isinstance(value, list | np.ndarray) and not len(value):
        return None
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("expected a list of numbers") from error
    if not numbers.ndim or numbers.size % 3:
        raise ValueError(f"expected three numbers for every keypoint, found {numbers.size} in total")
    keypoints = numbers.reshape(-1, 3)
    if not ((np.abs(keypoints) < _LARGEST).all() and np.isin(keypoints[:, 2], (0, 1, 2)).all()):
        raise ValueError("expected finite numbers, and visibilities 0, 1 or 2")
    return keypoints


def keypoint_layout(
    annotations: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]], *, where: str
) -> KeypointLayout:
    """Return the names, skeleton and flip pairs of the keypoints; all are empty if no annotation has keypoints.

    Args:
        annotations: annotations with parsed `keypoints`. If no category names them, the names are 0, 1, ..., as many as
            most annotations have.
        categories: categories, of which some have the lists `keypoints`, `skeleton` and `flip_pairs` (pairs counted
            from 1). `flip_pairs` is an addition of ours to the format.
        where: file, for messages.

    Raises:
        DataError: categories have different keypoints, or a pair does not name two of them, or a keypoint is in two
            flip pairs.
    """
    counts = Counter(len(a["keypoints"]) for a in annotations if a.get("keypoints") is not None)
    if not counts:
        return UNNAMED
    named = [c for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]]
    if not named:
        return KeypointLayout(tuple(map(str, range(counts.most_common(1)[0][0]))))
    lists = {tuple(encodable(str(name)) for name in c["keypoints"]) for c in named}
    if len(lists) > 1:
        lengths = ", ".join(f"{c['name']} ({len(c['keypoints'])})" for c in named)
        raise DataError(
            f"{where}: all categories with keypoints need the same ones, found {lengths:.300}{WITHOUT_KEYPOINTS}"
        )
    (names,) = lists
    skeletons = [_pairs(c, "skeleton", names, where=where) for c in named]
    flips = [_pairs(c, "flip_pairs", names, where=where) for c in named]
    return KeypointLayout(names, next(filter(None, skeletons), ()), next((f for f in flips if f is not None), None))


def stack_keypoints(annotations: Sequence[dict[str, Any]], count: int) -> np.ndarray:
    """Stack the parsed `keypoints` of annotations: float64 [B, count, 3], zeros where they are missing."""
    values = np.zeros((len(annotations), count, 3))
    for row, a in zip(values, annotations, strict=True):
        if a.get("keypoints") is not None:
            row[:] = a["keypoints"]
    return values


def _pairs(
    category: dict[str, Any], key: Literal["skeleton", "flip_pairs"], names: Sequence[str], *, where: str
) -> tuple[tuple[int, int], ...] | None:
    """Return the pairs of keypoints of a category, counted from 0 instead of 1; None if it has none.

    Raises:
        DataError: a pair does not name two of the keypoints, or a keypoint is in two flip pairs.
    """
    value = category.get(key)
    if value is None:
        return None
    try:
        pairs = tuple((parse_integer(a) - 1, parse_integer(b) - 1) for a, b in value)
    except (TypeError, ValueError):
        pairs = ((-1, -1),)
    members = [i for pair in pairs for i in pair]
    is_repeated = key == "flip_pairs" and len(set(members)) != len(members)
    if is_repeated or not all(0 <= i < len(names) for i in members):
        once = ", each in one pair" if key == "flip_pairs" else ""
        raise DataError(
            f"{where}: {key} of {category['name']}: expected pairs [a, b] of keypoints from 1 to {len(names)}"
            f" ({', '.join(names):.200}){once}, found {quote(value)}{WITHOUT_KEYPOINTS}"
        )
    return pairs
