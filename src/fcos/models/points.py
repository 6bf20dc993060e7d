"""Locations of the pyramid levels, and FCOS's assignment of ground truth to them.

Shape letters: N images, L levels, R locations over all levels, M boxes of an image (padded to the largest number in
the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import area
from ..choices import BoxConvention, Location
from ..structures import Objects

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Assigner:
    """Options of the assignment of ground-truth boxes to locations.

    Attributes:
        strides: L strides of the pyramid levels in pixels.
        size_ranges: L pairs (low, high) in pixels. A location can be assigned a box if the largest of its four
            distances to the sides is in the range of its level, both ends included. None: no upper end.
        center_sampling_radius: largest distance from the box's centre, per axis and in strides, at which a location
            inside the box can be positive. 0: every location inside the box can be.
        location: point of a cell that its location is, see `pyramid_locations`.
        box_convention: convention in which box areas are computed.
    """

    strides: Sequence[int] = (8, 16, 32, 64, 128)
    size_ranges: Sequence[tuple[float, float | None]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, None))
    center_sampling_radius: float = 0.0
    location: Location = "center"
    box_convention: BoxConvention = "continuous"

    def locations(self, maps: Sequence[tuple[int, int]], *, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the locations of every level, see `pyramid_locations`."""
        return pyramid_locations(maps, self.strides, location=self.location, device=device)

    def maps(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of every level's map for an image of the padded (height, width) `size`."""
        return map_sizes(size, self.strides)


class Assignment(NamedTuple):
    """Training targets of every location.

    Attributes:
        labels: [N, R] int64: a class 0..K-1, `BACKGROUND`, or `IGNORED` (inside a crowd box: no classification loss).
        ltrb: [N, R, 4] float32 distances in pixels from the location to the sides of its box; undefined for locations
            without a box.
        boxes: [N, R] int64 index of the assigned box in 0..M-1, or -1.
        num_unassigned: 0-dim int64 number of boxes, crowd boxes excluded, that are assigned to no location.
    """

    labels: Tensor
    ltrb: Tensor
    boxes: Tensor
    num_unassigned: Tensor


def locations(
    size: tuple[int, int], stride: int | tuple[int, int], *, offset: float = 0.5, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the locations of a map, one point (x, y) per cell.

    Args:
        size: (height, width) of the map.
        stride: distance between neighbouring points in pixels, or a pair (vertical, horizontal).
        offset: position of the point in its cell, in strides: 0.5 is the centre, 0 the upper left corner.
        device: device of the result.

    Returns:
        [height * width, 2] float32 pixels, row by row: ((column + offset) * stride, (row + offset) * stride).
    """
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in size)
    down, across = (stride, stride) if isinstance(stride, int) else stride
    y, x = torch.meshgrid((rows + offset) * down, (columns + offset) * across, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def map_sizes(size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (height, width) of every level's map for an image of the padded (height, width) `size`."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def pyramid_locations(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    location: Location = "center",
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Return the locations of every level.

    Args:
        maps: L sizes (height, width) of the levels' maps.
        strides: L strides in pixels.
        location: point of the cell: its `center`, or its upper left `corner` as in torchvision. With `corner`, the
            points are (padded image side) // (map side) pixels apart, which is less than the stride if the stride does
            not divide the side.
        device: device of the result.

    Returns:
        L tensors [height * width, 2] of (x, y) in pixels, row by row.
    """
    if location == "center":
        return [locations(size, stride, device=device) for size, stride in zip(maps, strides, strict=True)]
    height, width = (side * strides[0] for side in maps[0])  # padded images have a whole number of these cells
    return [locations((h, w), (height // h, width // w), offset=0.0, device=device) for h, w in maps]


def centerness_targets(ltrb: Tensor) -> Tensor:
    """Compute the centerness: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        ltrb: [..., 4] positive distances to the left, top, right and bottom side of the box.

    Returns:
        [...] centerness in 0..1.

    Source: FCOS, equation 3.
    """
    horizontal, vertical = ltrb[..., [0, 2]], ltrb[..., [1, 3]]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * (vertical.amin(-1) / vertical.amax(-1))
    return ratio.sqrt()


@torch.no_grad()
def assign_targets(points: Sequence[Tensor], targets: Sequence[Objects], assigner: Assigner) -> Assignment:
    """Assign to every location the smallest box that contains it and whose size is in the range of its level.

    A location on the edge of a box is not inside it. Of boxes with equal areas, the first is assigned. Crowd boxes are
    never assigned; locations inside them that have no other box are ignored.

    Args:
        points: L tensors [R_l, 2], the (x, y) of every level's locations in pixels.
        targets: ground truth of N images in the same pixels.
        assigner: options of the assignment.

    Returns:
        The assignment, with the levels concatenated in the order of `points`.

    Source: FCOS, sections 3.1 and 3.2; center sampling: the TPAMI version, section 3.3.
    """
    xy = torch.cat(list(points))  # [R, 2]
    boxes, labels, crowd = _pad_targets(targets, xy.device)
    if labels.numel() == 0:  # no images, or no box in any of them
        unassigned = torch.full((len(targets), len(xy)), BACKGROUND, device=xy.device)
        return Assignment(unassigned, xy.new_zeros(*unassigned.shape, 4), unassigned, unassigned.new_zeros(()))
    limits = xy.new_tensor(
        [
            (low, torch.inf if high is None else high, assigner.center_sampling_radius * stride)
            for (low, high), stride in zip(assigner.size_ranges, assigner.strides, strict=True)
        ]
    )
    counts = torch.tensor([len(p) for p in points], device=xy.device)
    limits = limits.repeat_interleave(counts, dim=0, output_size=len(xy))  # [R, 3]: low, high, radius
    rows = []
    for image_boxes, image_labels, image_crowd in zip(boxes, labels, crowd, strict=True):
        index = _find_smallest_box(
            xy,
            image_boxes,
            torch.nonzero((image_labels >= 0) & ~image_crowd).squeeze(1),
            limits=limits,
            center_sampling=assigner.center_sampling_radius > 0,
            convention=assigner.box_convention,
        )
        box_index = index.clamp(min=0)
        background = torch.where(_is_inside_any(xy, image_boxes[image_crowd]), IGNORED, BACKGROUND)
        location_labels = torch.where(index >= 0, image_labels[box_index], background)
        rows.append(
            (
                location_labels,
                torch.cat([xy - image_boxes[box_index, :2], image_boxes[box_index, 2:] - xy], dim=1),
                index,
            )
        )
    location_labels, ltrb, matched = (torch.stack(column) for column in zip(*rows, strict=True))
    return Assignment(location_labels, ltrb, matched, _count_unassigned(matched, (labels >= 0) & ~crowd))


def _pad_targets(targets: Sequence[Objects], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [N, M, 4], labels [N, M] (-1 in the padding) and crowd flags [N, M] of all images."""
    max_boxes = max((len(objects) for objects in targets), default=0)
    boxes = torch.zeros(len(targets), max_boxes, 4, device=device)
    labels = torch.full((len(targets), max_boxes), -1, dtype=torch.int64, device=device)
    crowd = torch.zeros(len(targets), max_boxes, dtype=torch.bool, device=device)
    for i, objects in enumerate(targets):
        boxes[i, : len(objects)] = objects.boxes
        labels[i, : len(objects)] = objects.labels
        crowd[i, : len(objects)] = objects.is_crowd
    return boxes, labels, crowd


def _find_smallest_box(
    xy: Tensor, boxes: Tensor, candidates: Tensor, *, limits: Tensor, center_sampling: bool, convention: BoxConvention
) -> Tensor:
    """Return the index [R] of the box assigned to each location: one of `candidates`, or -1.

    Each of the four distances is a tensor [R, M], which avoids a tensor [R, M, 4].
    """
    if len(candidates) == 0:
        return torch.full((len(xy),), -1, device=xy.device)
    candidates = candidates[area(boxes[candidates], convention=convention).argsort(stable=True)]
    x, y = xy.split(1, dim=1)  # [R, 1]
    low, high, radius = limits.split(1, dim=1)
    x1, y1, x2, y2 = boxes[candidates].unbind(-1)  # [M]
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # [R, M]
    largest = left.maximum(right).maximum(top.maximum(bottom))
    if center_sampling:
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        is_inside = (
            (x > (center_x - radius).maximum(x1))
            & (x < (center_x + radius).minimum(x2))
            & (y > (center_y - radius).maximum(y1))
            & (y < (center_y + radius).minimum(y2))
        )
    else:
        is_inside = left.minimum(right).minimum(top.minimum(bottom)) > 0
    has_box, first = (is_inside & (largest >= low) & (largest <= high)).max(dim=1)  # the first match is the smallest
    return torch.where(has_box, candidates[first], -1)


def _is_inside_any(xy: Tensor, boxes: Tensor) -> Tensor:
    """Return a mask [R] of the locations that are inside any of the boxes."""
    return ((xy[:, None] > boxes[:, :2]) & (xy[:, None] < boxes[:, 2:])).all(dim=-1).any(dim=1)


def _count_unassigned(matched: Tensor, is_object: Tensor) -> Tensor:
    """Count the boxes of the mask `is_object` [N, M] whose index is not in `matched` [N, R]; 0-dim int64."""
    is_assigned = is_object.new_zeros(len(is_object), 1 + is_object.shape[1])
    is_assigned.scatter_(1, matched + 1, True)  # column 0 is for locations without a box
    return (is_object & ~is_assigned[:, 1:]).sum()
