"""Locations of the pyramid levels, and FCOS's assignment of ground truth to them.

Shape letters: N images, L levels, R locations over all levels, M boxes of an image (the largest number, if padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..boxes import GPU_TYPES, area
from ..choices import BoxConvention, Location
from ..structures import Objects

BACKGROUND = -1
IGNORED = -2
_MAX_PAIRS = 2**18
"""Largest number of pairs (location, box) compared at a time: their tensors fit into the cache of a CPU core."""
_MAX_GPU_PAIRS = 2**24
"""The same on a GPU, where every chunk costs calls."""
_MIN_LOCATIONS = 512
"""Smallest number of locations compared at a time on a CPU."""


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
        location: point of the cell: its `center`, or its upper left corner. With `corner`, as in torchvision, the
            points are (padded image side) // (map side) pixels apart, which is less than the stride if the stride does
            not divide the side. With `multiple`, they are multiples of the stride.
        device: device of the result.

    Returns:
        L tensors [height * width, 2] of (x, y) in pixels, row by row.
    """
    if location != "corner":
        offset = 0.5 if location == "center" else 0.0
        pairs = zip(maps, strides, strict=True)
        return [locations(size, stride, offset=offset, device=device) for size, stride in pairs]
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
    limits = torch.cat([_level_limits(level, i, assigner) for i, level in enumerate(points)])  # [R, 3]
    # A GPU spends less time on padding than on starting the kernels of every image; a CPU does not.
    groups = [targets] if xy.device.type in GPU_TYPES or not targets else [[objects] for objects in targets]
    parts = [_assign_images(xy, limits, group, assigner) for group in groups]
    return Assignment(
        torch.cat([part.labels for part in parts]),
        torch.cat([part.ltrb for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.stack([part.num_unassigned for part in parts]).sum(),
    )


def _level_limits(points: Tensor, level: int, assigner: Assigner) -> Tensor:
    """Return smallest and largest size and center-sampling radius in pixels for the locations of a level, [R_l, 3]."""
    low, high = assigner.size_ranges[level]
    radius = assigner.center_sampling_radius * assigner.strides[level]
    columns = (low, torch.inf if high is None else high, radius)
    return torch.stack([points.new_full((len(points),), value) for value in columns], dim=1)


def _assign_images(xy: Tensor, limits: Tensor, targets: Sequence[Objects], assigner: Assigner) -> Assignment:
    """Assign the objects of N images, padded to the same number M, see `assign_targets`.

    Only M depends on the data, so a GPU never has to be waited for.
    """
    num_boxes = len(targets) * max((len(objects) for objects in targets), default=0)
    if not num_boxes:
        unassigned = torch.full((len(targets), len(xy)), BACKGROUND, device=xy.device)
        return Assignment(unassigned, xy.new_zeros(*unassigned.shape, 4), unassigned, unassigned.new_zeros(()))
    columns = [objects.boxes.to(xy, non_blocking=True) for objects in targets]
    boxes = pad_sequence(columns, batch_first=True)  # [N, M, 4]
    labels = pad_sequence([objects.labels for objects in targets], batch_first=True)  # [N, M]
    # Padding is like an empty crowd box: no location is inside it, and it does not count.
    is_crowd = pad_sequence([objects.is_crowd for objects in targets], batch_first=True, padding_value=1.0)
    labels, is_crowd = (column.to(xy.device, non_blocking=True) for column in (labels, is_crowd))
    areas = area(boxes, convention=assigner.box_convention).masked_fill(is_crowd, torch.inf)
    order = areas.argsort(dim=1, stable=True)  # crowd boxes last
    by_area = boxes.take_along_dim(order[..., None], 1), is_crowd.gather(1, order)
    if xy.device.type in GPU_TYPES:
        size = max(1, _MAX_GPU_PAIRS // num_boxes)
    else:
        size = max(_MIN_LOCATIONS, _MAX_PAIRS // num_boxes)
    chunks = [
        _match(*chunk, *by_area, center_sampling=assigner.center_sampling_radius > 0)
        for chunk in zip(xy.split(size), limits.split(size), strict=True)
    ]
    first, is_matched, is_in_crowd = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
    index = order.gather(1, first)  # [N, R]
    assigned = boxes.take_along_dim(index[..., None], 1)  # [N, R, 4]
    is_assigned = torch.zeros_like(labels).scatter_reduce(1, index, is_matched.long(), "amax")
    return Assignment(
        torch.where(is_matched, labels.gather(1, index), torch.where(is_in_crowd, IGNORED, BACKGROUND)),
        torch.cat([xy - assigned[..., :2], assigned[..., 2:] - xy], dim=2),
        torch.where(is_matched, index, -1),
        (~is_crowd & (is_assigned == 0)).sum(),
    )


def _match(
    xy: Tensor, limits: Tensor, boxes: Tensor, is_crowd: Tensor, *, center_sampling: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare locations [R, 2] with boxes [N, M, 4], which are sorted by area in every image.

    Each of the four distances is a tensor [N, R, M], which avoids a tensor [N, R, M, 4].

    Returns:
        For every image and location [N, R] the index of the first box that matches it, whether there is one, and
        whether the location is inside a crowd box.
    """
    x, y = xy.split(1, dim=1)  # [R, 1]
    low, high, radius = limits.split(1, dim=1)
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)  # [N, 1, M]
    is_crowd = is_crowd[:, None]
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # [N, R, M]
    is_inside = left.minimum(right).minimum(top.minimum(bottom)) > 0
    largest = left.maximum(right).maximum(top.maximum(bottom))
    is_match = is_inside & (largest >= low) & (largest <= high) & ~is_crowd
    if center_sampling:
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        is_match &= (
            (x > center_x - radius) & (x < center_x + radius) & (y > center_y - radius) & (y < center_y + radius)
        )
    is_matched, first = is_match.max(dim=2)  # the first match is the smallest
    return first, is_matched, (is_inside & is_crowd).any(dim=2)
