"""Boxes that a reader finds one by one, and the Source that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..keypoints import KeypointLayout
from ..masks import Masks
from .source import Keypoints, Source


class Row(NamedTuple):
    """One box of a format with one annotation file per image.

    Attributes:
        image: position of the image.
        number: number of the box in its file.
        label: label of the class.
        box: XYXY.
        crowd: True for ignore regions.
        polygon: mask of the object, x1, y1, x2, y2, ...; empty if there is none, or if masks are not read.
        keypoints: x1, y1, visibility1, x2, ... of the object; empty if there are none, or if they are not read.
    """

    image: int
    number: int
    label: int
    box: Sequence[float]
    crowd: bool = False
    polygon: Sequence[float] = ()
    keypoints: Sequence[float] = ()


def source_from_rows(
    rows: Sequence[Row],
    *,
    sizes: Sequence[tuple[int, int]],
    with_masks: bool = False,
    keypoint_layout: KeypointLayout | None = None,
    **attributes: Any,
) -> Source:
    """Build a Source from individual boxes; image ids are 1, 2, ..., and `attributes` holds the other fields.

    Args:
        rows: boxes.
        sizes: (height, width) of every image as annotated, (0, 0) if not annotated.
        with_masks: use the polygons as masks.
        keypoint_layout: meaning of the keypoints; None: the rows have none.
        attributes: fields of the source that the rows do not determine.
    """
    count = len(attributes["file_names"])
    return Source(
        image_ids=np.arange(1, count + 1, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        image_of=np.array([row.image for row in rows], dtype=np.int64),
        boxes=np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowd=np.array([row.crowd for row in rows], dtype=bool),
        areas=np.full(len(rows), np.nan),
        numbers=np.array([row.number for row in rows], dtype=np.int64),
        masks=Masks.from_polygons([[row.polygon] if row.polygon else [] for row in rows]) if with_masks else None,
        keypoints=None if keypoint_layout is None else _keypoints_of(rows, keypoint_layout),
        **attributes,
    )


def _keypoints_of(rows: Sequence[Row], layout: KeypointLayout) -> Keypoints:
    """Return the keypoints of all rows, zeros for rows without."""
    missing = [0.0] * (3 * len(layout.names))
    values = np.array([row.keypoints or missing for row in rows], dtype=np.float64)
    return Keypoints(values.reshape(len(rows), len(layout.names), 3), layout)
