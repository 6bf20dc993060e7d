"""Which location learns what: FCOS's assignment of ground truth to locations.

Shape letters: N images, L levels, R locations over all levels, M boxes of an image (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..boxes import area
from ..structures import BoxConvention, Targets

BACKGROUND = -1
IGNORED = -2


class Assignment(NamedTuple):
    """What every location has to learn.

    Attributes:
        labels: [N, R] int64: a class 0..K-1, `BACKGROUND`, or `IGNORED` (inside a crowd box: no classification loss).
        ltrb: [N, R, 4] float32 distances in pixels from the location to the sides of its box; undefined elsewhere.
        boxes: [N, R] int64, index of the box in 0..M-1, or -1.
    """

    labels: Tensor
    ltrb: Tensor
    boxes: Tensor


def locations(
    size: tuple[int, int], stride: int | tuple[int, int], *, offset: float = 0.5, device: torch.device | str = "cpu"
) -> Tensor:
    """Which points (x, y) the cells of a map stand for.

    Args:
        size: (height, width) of the map.
        stride: pixels between neighbours; a pair: (down, across).
        offset: of the point in its cell, in strides: 0.5 the centre, 0 the upper left corner.
        device: where to put them.

    Returns:
        [height * width, 2] float32 pixels, row by row: ((column + offset) * stride, (row + offset) * stride).
    """
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in size)
    down, across = (stride, stride) if isinstance(stride, int) else stride
    y, x = torch.meshgrid((rows + offset) * down, (columns + offset) * across, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def pyramid_locations(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    location: Literal["center", "corner"] = "center",
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The locations of every level.

    Args:
        maps: L sizes (height, width) of the levels' maps.
        strides: L strides in pixels.
        location: which point of its cell it is: the `center`, or the upper left `corner` as in torchvision, where
            cells are padded side // map side apart: less than the stride where that does not divide the side.
        device: where to put them.

    Returns:
        L tensors [height * width, 2], see `locations`.
    """
    if location == "center":
        return [locations(size, stride, device=device) for size, stride in zip(maps, strides, strict=True)]
    height, width = (side * strides[0] for side in maps[0])  # the padded images hold whole cells of this level
    return [locations((h, w), (height // h, width // w), offset=0.0, device=device) for h, w in maps]


def centerness_targets(ltrb: Tensor) -> Tensor:
    """How central a location is in its box: sqrt of min/max of left and right times min/max of top and bottom.

    Args:
        ltrb: [..., 4] positive distances.

    Returns:
        [...] in 0..1.

    Source: FCOS, equation 3.
    """
    horizontal, vertical = ltrb[..., [0, 2]], ltrb[..., [1, 3]]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * (vertical.amin(-1) / vertical.amax(-1))
    return ratio.sqrt()


@torch.no_grad()
def assign_targets(
    points: Sequence[Tensor],
    targets: Targets,
    *,
    strides: Sequence[int],
    size_ranges: Sequence[tuple[float, float | None]],
    center_sampling_radius: float = 0.0,
    box_convention: BoxConvention = "continuous",
) -> Assignment:
    """Give every location the smallest box it lies in, among those whose size belongs to its level.

    Args:
        points: L tensors [R_l, 2], the (x, y) of every level's locations in pixels.
        targets: ground truth of N images in the same pixels.
        strides: L strides in pixels.
        size_ranges: L (low, high); the largest of the four distances must be in it, both ends included; None: no end.
        center_sampling_radius: in strides; a location must also be this close to the box's centre. 0: anywhere inside.
        box_convention: how box areas are counted.

    Returns:
        The assignment, levels concatenated in the order given.

    Source: FCOS, section 3.1 and 3.2; center sampling: the TPAMI version, section 3.3. "Inside" is strict. Equal areas:
    the first box. Crowd boxes teach nothing; other locations inside them are ignored.
    """
    xy = torch.cat(list(points))  # [R, 2]
    if targets.labels.numel() == 0:  # no images, or no box in any of them
        none = torch.full((len(targets.labels), len(xy)), BACKGROUND, device=xy.device)
        return Assignment(none, xy.new_zeros(*none.shape, 4), none)
    limits = xy.new_tensor(
        [
            (low, torch.inf if high is None else high, center_sampling_radius * stride)
            for (low, high), stride in zip(size_ranges, strides, strict=True)
        ]
    )
    counts = torch.tensor([len(p) for p in points], device=xy.device)
    limits = limits.repeat_interleave(counts, dim=0, output_size=len(xy))  # [R, 3]: low, high, reach
    labels, ltrb, matched = [], [], []
    for boxes, box_labels, crowd in zip(*targets, strict=True):
        index = _smallest_box(
            xy,
            boxes,
            torch.nonzero((box_labels >= 0) & ~crowd).squeeze(1),
            limits=limits,
            center_sampling=center_sampling_radius > 0,
            convention=box_convention,
        )
        some = index.clamp(min=0)
        background = torch.where(_inside(xy, boxes[crowd]), IGNORED, BACKGROUND)
        labels.append(torch.where(index >= 0, box_labels[some], background))
        ltrb.append(torch.cat([xy - boxes[some, :2], boxes[some, 2:] - xy], dim=1))
        matched.append(index)
    return Assignment(torch.stack(labels), torch.stack(ltrb), torch.stack(matched))


def _smallest_box(
    xy: Tensor, boxes: Tensor, candidates: Tensor, *, limits: Tensor, center_sampling: bool, convention: BoxConvention
) -> Tensor:
    """Index [R] of the box each location learns, one of the candidates, or -1.

    The distances are kept apart: no [R, M, 4] is ever made.
    """
    if len(candidates) == 0:
        return torch.full((len(xy),), -1, device=xy.device)
    candidates = candidates[area(boxes[candidates], convention=convention).argsort(stable=True)]
    x, y = xy.split(1, dim=1)  # [R, 1]
    low, high, reach = limits.split(1, dim=1)
    x1, y1, x2, y2 = boxes[candidates].unbind(-1)  # [M]
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # [R, M]
    largest = left.maximum(right).maximum(top.maximum(bottom))
    if center_sampling:
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        inside = (
            (x > (center_x - reach).maximum(x1))
            & (x < (center_x + reach).minimum(x2))
            & (y > (center_y - reach).maximum(y1))
            & (y < (center_y + reach).minimum(y2))
        )
    else:
        inside = left.minimum(right).minimum(top.minimum(bottom)) > 0
    found, first = (inside & (largest >= low) & (largest <= high)).max(dim=1)  # of several the first: the smallest
    return torch.where(found, candidates[first], -1)


def _inside(xy: Tensor, boxes: Tensor) -> Tensor:
    """Which locations [R] lie in any of the boxes."""
    return ((xy[:, None] > boxes[:, :2]) & (xy[:, None] < boxes[:, 2:])).all(dim=-1).any(dim=1)


def count_unassigned(assignment: Assignment, targets: Targets) -> Tensor:
    """How many boxes (without crowd) of the batch no location learns; 0-dim int64."""
    learned = targets.crowd.new_zeros(len(targets.crowd), 1 + targets.crowd.shape[1])
    learned.scatter_(1, assignment.boxes + 1, True)  # the first column: no box
    return ((targets.labels >= 0) & ~targets.crowd & ~learned[:, 1:]).sum()
