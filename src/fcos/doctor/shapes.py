"""Detection of suspicious masks and keypoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..data.dataset import Annotations
from ..formatting import plural
from .findings import Case, Finding, Place, worst_first

MAX_CHECKED = 5000
"""Maximum number of images, spread evenly over a split, whose masks are checked."""
BEYOND_BOX = 0.05
"""Part of the side of a box by which its mask or keypoints may extend beyond it."""
_MIN_BEYOND = 2.0  # pixels; rounding of small boxes
_MAX_POINTS = 2000  # of a ring that is searched for crossings: memory grows with the square
_Cases = list[tuple[float, Case]]


def shape_findings(splits: Mapping[str, Annotations]) -> list[Finding]:
    """Find suspicious masks and keypoints in the splits for which they were read.

    Args:
        splits: annotations by split.
    """
    return [finding for finding in (*_mask_findings(splits), *_keypoint_findings(splits)) if finding.cases]


def _mask_findings(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    from hotcoco import mask as rle

    crossing: _Cases = []
    empty: _Cases = []
    outside: _Cases = []
    for split, split_annotations in splits.items():
        if split_annotations.masks is None:
            continue
        count = len(split_annotations)
        for image in np.unique(np.linspace(0, count - 1, min(count, MAX_CHECKED)).round().astype(int)).tolist():
            span = split_annotations.span(image)
            masks, boxes = split_annotations.masks[span], split_annotations.boxes[span]
            height, width = split_annotations.sizes[image].tolist()
            has_pixels = [rle.area(code) > 0 for code in masks.to_rles((height, width))]
            extents = masks.boxes().numpy()
            beyond = _beyond(extents, boxes)
            for i, rings in enumerate(masks.polygons()):
                place, is_crowd = (split, image, (span.start + i,)), split_annotations.crowd[span.start + i]
                if rings and not has_pixels[i]:
                    x1, y1, x2, y2 = extents[i].tolist()
                    is_inside = x2 > 0 and y2 > 0 and x1 < width and y1 < height
                    note = "no area" if is_inside else f"outside the image, at {x1:.0f}, {y1:.0f}"
                    empty.append((0.0, (Place(*place, note),)))
                elif rings and beyond[i] > 0 and not is_crowd:
                    outside.append((beyond[i], (Place(*place, f"{beyond[i]:.0f} pixels"),)))
                if any(map(crosses_itself, rings)):
                    crossing.append((0.0, (Place(*place, "self-crossing"),)))
    yield Finding(
        "empty mask",
        "warning",
        f"{plural(len(empty), 'mask')} without a pixel in the image, such as a polygon without area",
        "Draw the masks again, or remove the objects: a mask head learns from them that there is nothing in the box.",
        worst_first(empty),
    )
    yield Finding(
        "mask outside its box",
        "warning",
        f"{plural(len(outside), 'mask')} that extend beyond their box by more than {BEYOND_BOX:.0%} of its side",
        "Correct the box or the mask. Training cuts masks off at the box.",
        worst_first(outside),
    )
    yield Finding(
        "self-crossing polygon",
        "note",
        f"{plural(len(crossing), 'mask')} with a polygon that crosses itself; areas that it encloses twice are holes",
        "Usually points in the wrong order: draw the polygon again.",
        worst_first(crossing),
    )


def _keypoint_findings(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    outside_image: _Cases = []
    outside_box: _Cases = []
    for split, split_annotations in splits.items():
        keypoints, image_of = split_annotations.keypoints, split_annotations.image_of
        if keypoints is None:
            continue
        points, is_annotated = keypoints.values[..., :2], keypoints.values[..., 2] > 0
        limits = split_annotations.sizes[image_of][:, None, ::-1]
        is_outside = is_annotated & ((points < 0) | (points > limits)).any(axis=2)
        extent = np.concatenate([points, points], axis=2)
        beyond = _beyond(extent, split_annotations.boxes[:, None])
        far = np.where(is_annotated & ~is_outside & ~split_annotations.crowd[:, None], beyond, 0.0)
        for cases, amounts in ((outside_image, is_outside.astype(float)), (outside_box, far)):
            for box in np.flatnonzero((amounts > 0).any(axis=1)).tolist():
                note = ", ".join(
                    f"{keypoints.names[i]} at {points[box, i, 0]:.0f}, {points[box, i, 1]:.0f}"
                    for i in np.flatnonzero(amounts[box] > 0)
                )
                cases.append((float(amounts[box].max()), (Place(split, int(image_of[box]), (box,), note),)))
    yield Finding(
        "keypoint outside the image",
        "warning",
        f"{plural(len(outside_image), 'object')} with keypoints outside the image",
        "Correct the keypoints, or set their visibility to 0.",
        worst_first(outside_image),
    )
    yield Finding(
        "keypoint outside its box",
        "note",
        f"{plural(len(outside_box), 'object')} with keypoints beyond the box by more than {BEYOND_BOX:.0%} of its side",
        "Correct the box or the keypoints. Training ignores keypoints outside the box.",
        worst_first(outside_box),
    )


def _beyond(extents: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the pixels by which extents [..., 4] XYXY exceed boxes [..., 4], 0 where it is little."""
    sides = boxes[..., 2:] - boxes[..., :2]
    excess = np.maximum(boxes[..., :2] - extents[..., :2], extents[..., 2:] - boxes[..., 2:])
    return np.where(excess > np.maximum(BEYOND_BOX * sides, _MIN_BEYOND), excess, 0.0).max(axis=-1)


def edges_of(ring: np.ndarray) -> np.ndarray:
    """Return the edges of a closed ring [T, 2], as [E, 4] x1, y1, x2, y2.

    Edges that occur twice cancel: they connect the parts of an outline.
    """
    edges = np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1)  # [T, 4]
    is_reversed = (edges[:, 0] > edges[:, 2]) | ((edges[:, 0] == edges[:, 2]) & (edges[:, 1] > edges[:, 3]))
    edges[is_reversed] = edges[is_reversed][:, [2, 3, 0, 1]]
    edges, counts = np.unique(edges, axis=0, return_counts=True)
    return edges[counts % 2 == 1]


def crosses_itself(ring: np.ndarray) -> bool:
    """Return whether two edges of a closed ring [T, 2] cross in their interior.

    Rings of more than 2,000 points are not searched.
    """
    if len(ring) > _MAX_POINTS:
        return False
    edges = edges_of(ring)
    start, end = edges[:, None, :2], edges[:, None, 2:]

    def side(points: np.ndarray) -> np.ndarray:
        """Return on which side of every edge every point is: positive, negative or 0, [T, T]."""
        direction, offset = end - start, points[None] - start
        return direction[..., 0] * offset[..., 1] - direction[..., 1] * offset[..., 0]

    separates = side(edges[:, :2]) * side(edges[:, 2:]) < 0
    return bool((separates & separates.T).any())
