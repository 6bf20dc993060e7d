"""Match between locations and boxes, without comparing every location with every box.

The locations of a level form a grid, so those inside a box are a range of its columns and rows. The result is that of
`assign_targets` (tested), for thousands of boxes in a fraction of the time and memory.

Shape letters: M boxes, R locations over all levels, P pairs of a location and a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import area
from ..models.points import Assigner
from ..structures import Objects
from .pieces import split_evenly

_MAX_PAIRS = 1_000_000  # pairs of location and box at once, to limit memory use
_SLACK = 1.001  # rounding of lengths, by which boxes may miss the size range that they are preselected for


class Matches(NamedTuple):
    """Matches of the boxes of an image, crowds excluded: a location matches a box that it could learn if it were alone.

    Attributes:
        assigned: int64 [R], the smallest box that matches the location, or -1, as from `assign_targets`.
        has_match: bool [M], boxes that match at least one location.
        several: bool [R], locations that match several boxes.
        classes: bool [R], locations that match boxes of different classes.
    """

    assigned: Tensor
    has_match: Tensor
    several: Tensor
    classes: Tensor


def match(points: Sequence[Tensor], objects: Objects, assigner: Assigner) -> Matches:
    """Match the locations of an image with its boxes.

    Args:
        points: [R_l, 2] of every level, the (x, y) of its locations in pixels, row by row.
        objects: M boxes in the same pixels.
        assigner: options of the assignment.
    """
    num_locations = sum(map(len, points))
    candidates = torch.nonzero(~objects.is_crowd).squeeze(1)
    areas = area(objects.boxes[candidates], convention=assigner.box_convention)
    candidates = candidates[areas.argsort(stable=True)]  # positions by rank: the smallest box first
    labels = objects.labels[candidates]
    smallest = torch.full((num_locations,), len(candidates))
    num_matches = torch.zeros(num_locations, dtype=torch.int64)
    lowest = torch.full((num_locations,), torch.iinfo(torch.int64).max)
    highest = torch.full((num_locations,), -1)
    has_match = torch.zeros(len(objects), dtype=torch.bool)
    for location, rank in _pairs(points, objects.boxes[candidates], assigner):
        smallest.scatter_reduce_(0, location, rank, "amin")
        num_matches.scatter_add_(0, location, torch.ones_like(location))
        lowest.scatter_reduce_(0, location, labels[rank], "amin")
        highest.scatter_reduce_(0, location, labels[rank], "amax")
        has_match[candidates[rank]] = True
    assigned = torch.cat([candidates, candidates.new_tensor([-1])])[smallest]
    return Matches(assigned, has_match, num_matches > 1, lowest < highest)


def _pairs(points: Sequence[Tensor], boxes: Tensor, assigner: Assigner) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all pairs that match, a million at once: positions of the locations [P] and of the boxes [P]."""
    start = 0
    for level_points, (low, high), stride in zip(points, assigner.size_ranges, assigner.strides, strict=True):
        limits = level_points.new_tensor([low, torch.inf if high is None else high])
        radius = level_points.new_tensor(assigner.center_sampling_radius * stride)
        for location, box in _level_pairs(level_points, boxes, limits, radius):
            yield location + start, box
        start += len(level_points)


def _level_pairs(points: Tensor, boxes: Tensor, limits: Tensor, radius: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    width = int((points[:, 1] == points[:1, 1]).sum())
    axes = points[:width, 0].contiguous(), points[::width, 1].contiguous()  # x of the columns, y of the rows
    low, high = limits
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    # For a location inside a box, the distance to the farthest side is between half and all of the longer side.
    chosen = torch.nonzero((longest * _SLACK >= low) & (longest / 2 <= high * _SLACK)).squeeze(1)
    lower, upper = boxes[chosen, :2], boxes[chosen, 2:]
    if radius > 0:
        center = (lower + upper) / 2
        lower, upper = (center - radius).maximum(lower), (center + radius).minimum(upper)
    firsts = [torch.searchsorted(axis, lower[:, i].contiguous(), right=True) for i, axis in enumerate(axes)]
    ends = [torch.searchsorted(axis, upper[:, i].contiguous()) for i, axis in enumerate(axes)]
    num_x, num_y = ((end - first).clamp(min=0) for first, end in zip(firsts, ends, strict=True))
    counts = num_x * num_y
    for piece in split_evenly(counts.numpy(), _MAX_PAIRS):
        rows = torch.arange(piece.start, piece.stop).repeat_interleave(counts[piece])  # [P], positions in `chosen`
        starts = counts[piece].cumsum(0) - counts[piece]
        step = torch.arange(len(rows)) - starts.repeat_interleave(counts[piece])
        column, row = firsts[0][rows] + step % num_x[rows], firsts[1][rows] + step // num_x[rows]
        xy = torch.stack([axes[0][column], axes[1][row]], dim=1)
        box = boxes[chosen[rows]]
        largest = torch.maximum(xy - box[:, :2], box[:, 2:] - xy).amax(dim=1)
        is_match = (largest >= low) & (largest <= high)
        yield (row * width + column)[is_match], chosen[rows[is_match]]
