"""Checks and units of the masks and keypoints of a Source.

Shape letters: I images, B boxes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from ..keypoints import UNNAMED
from ..masks import Masks
from .source import Keypoints, Problem, Source

BOXES_OF_MASKS = "data.boxes=masks"


class MissingShapesError(DataError):
    """A split lacks what the head of a detector needs of its objects; `option`, `masks` or `keypoints`, asks for it."""

    def __init__(self, message: str, option: Literal["masks", "keypoints"]):
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle needs to build the error in the other processes of a training."""
        return type(self), (str(self), self.option), vars(self)


def require_shapes(source: Source, *, masks_for: str | None, keypoints: bool) -> Source:
    """Check that a split has the masks and keypoints that are required. A split without boxes may lack them.

    Args:
        source: split as read from its files.
        masks_for: option that needs masks, for messages; None: masks are not required.
        keypoints: keypoints are required.

    Raises:
        MissingShapesError: it has no masks or keypoints for the head of a detector.
        DataError: it has no masks for the boxes.
    """
    if not len(source.boxes):
        no_keypoints = Keypoints(np.zeros((0, 0, 3)), UNNAMED)
        return replace(
            source, masks=Masks.empty() if masks_for else None, keypoints=no_keypoints if keypoints else None
        )
    where = source.annotation_file(0) if source.annotation_files else source.root
    first = f"; the first problem is {source.problems[0]}" if source.problems else ""
    if masks_for and (source.masks is None or not np.diff(source.masks.object_offsets).any()):
        message = (
            f"{where}: {masks_for} needs the masks of the objects (`segmentation` in COCO files,"
            " polygons in YOLO files, shapes in LabelMe and CVAT files, SegmentationObject in VOC, instances in"
            " Cityscapes), found none; use data"
            " with masks, or "
        )
        if masks_for == BOXES_OF_MASKS:
            raise DataError(f"{message}remove {masks_for}{first}")
        raise MissingShapesError(f"{message}a detector without mask head and data.masks=false{first}", "masks")
    if keypoints and source.keypoints is None:
        raise MissingShapesError(
            f"{where}: data.keypoints=true needs the keypoints of the objects (`keypoints` in COCO files, kpt_shape in"
            " data.yaml of YOLO, skeletons in CVAT files), found none;"
            f" use data with keypoints, or a detector without keypoint head and data.keypoints=false{first}",
            "keypoints",
        )
    return source


def without_empty_shapes(source: Source) -> Source:
    """Return a source whose masks and keypoints are None if no object has any."""
    masks, keypoints = source.masks, source.keypoints
    if masks is not None and not np.diff(masks.object_offsets).any():
        masks = None
    if keypoints is not None and not keypoints.values.any():
        keypoints = None
    return replace(source, masks=masks, keypoints=keypoints)


def to_pixels(source: Source, sizes: np.ndarray) -> Source:
    """Convert boxes, masks and keypoints in fractions of the image to pixels.

    Args:
        source: split as read from its files.
        sizes: int32 [I, 2], (height, width) of the images.
    """
    if not source.relative:
        return source
    frames, masks, keypoints = sizes[source.image_of][:, ::-1].astype(np.float64), source.masks, source.keypoints
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are reported later
        boxes = source.boxes * np.tile(frames, 2)
    if masks is not None:
        num_points = np.diff(masks.ring_offsets[masks.object_offsets])
        masks = replace(masks, points=masks.points * np.repeat(frames, num_points, axis=0))
    if keypoints is not None:
        values = keypoints.values.copy()
        values[:, :, :2] *= frames[:, None]
        keypoints = replace(keypoints, values=values)
    return replace(source, boxes=boxes, relative=False, masks=masks, keypoints=keypoints)


def with_boxes_of_masks(source: Source) -> Source:
    """Return a source in pixels whose boxes surround the masks; objects without mask keep their boxes."""
    masks = source.masks
    if masks is None:
        return source
    has_mask = np.diff(masks.object_offsets) > 0
    return replace(source, boxes=np.where(has_mask[:, None], masks.extents(), source.boxes))


def find_missing_masks(source: Source, usable: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
    """Find objects without mask in data with masks.

    Args:
        source: split as read from its files.
        usable: bool [B], boxes to check.

    Returns:
        The usable boxes [B] that have a mask, or are crowds, and the problems.
    """
    if source.masks is None:
        return usable, []
    is_missing = usable & ~source.crowd & (np.diff(source.masks.object_offsets) == 0)
    message = "has no mask (no polygon of three points or more, and no pixels)"
    return usable & ~is_missing, [source.box_problem(int(i), "no mask", message) for i in np.flatnonzero(is_missing)]
