"""Match between locations and the boxes of many images, without comparing every location with every box.

The locations of a level form a grid, so those inside a box are a range of its columns and rows. The result is that of
`assign_targets` (tested), for thousands of boxes in a fraction of the time and memory.

Shape letters: M boxes of all images, P locations that match a box, Q pairs of a location and a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..boxes import area
from ..models.points import Assigner

_MAX_PAIRS = 2**18  # pairs of location and box at once: their arrays fit into the cache of a CPU core
_SLACK = 1.001  # rounding of lengths, by which boxes may miss the size range that they are preselected for


class Boxes(NamedTuple):
    """Boxes of images with the same grid of locations, crowds excluded.

    Attributes:
        xyxy: float32 [M, 4], pixels of the padded image.
        labels: int64 [M].
        image: int64 [M], number of the image of each box, 0..N-1.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    image: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Boxes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Boxes(*(column[chosen] for column in self))


class Positives(NamedTuple):
    """Locations of a level that match a box: a location matches a box that it could learn if the box were alone.

    Attributes:
        level: number of the level.
        location: int64 [P], image * (number of locations of the level) + position in the level, without repetition.
        box: int64 [P], the smallest box that matches the location, as from `assign_targets`.
        several: bool [P], locations that match several boxes.
        classes: bool [P], locations that match boxes of different classes.
        matched: int64 [Q], boxes that match a location; each may occur several times.
    """

    level: int
    location: np.ndarray
    box: np.ndarray
    several: np.ndarray
    classes: np.ndarray
    matched: np.ndarray


def match(points: Sequence[Tensor], boxes: Boxes, assigner: Assigner) -> Iterator[Positives]:
    """Match the locations of images with their boxes; yield every location that matches a box once.

    Args:
        points: [R_l, 2] of every level, the (x, y) of its locations in pixels, row by row.
        boxes: M boxes in the same pixels.
        assigner: options of the assignment.
    """
    areas = area(torch.from_numpy(boxes.xyxy), convention=assigner.box_convention).numpy()
    order = np.lexsort((areas, boxes.image))  # the smallest box of an image first; equal areas keep their order
    boxes = boxes[order]
    shift = len(order).bit_length()
    for level, level_points in enumerate(points):
        for location, rank in _pairs(level_points.numpy(), boxes, assigner, level):
            keys = np.sort((location << shift) + rank)
            location, rank = keys >> shift, keys & ((1 << shift) - 1)  # noqa: PLW2901 (sorted)
            starts = np.flatnonzero(np.diff(location, prepend=-1))
            counts = np.diff(starts, append=len(keys))
            smallest = rank[starts]
            differs = boxes.labels[rank] != np.repeat(boxes.labels[smallest], counts)
            classes = np.logical_or.reduceat(differs, starts) if len(starts) else np.zeros(0, dtype=bool)
            yield Positives(level, location[starts], order[smallest], counts > 1, classes, order[rank])


def _pairs(points: np.ndarray, boxes: Boxes, assigner: Assigner, level: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs that match on a level: locations, numbered as in `Positives`, and positions of boxes, [Q] each.

    All pairs of a location are yielded at once.
    """
    width = int((points[:, 1] == points[:1, 1]).sum())
    low, high = (np.float32(np.inf if end is None else end) for end in assigner.size_ranges[level])
    radius = np.float32(assigner.center_sampling_radius * assigner.strides[level])
    longest = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).max(axis=1, initial=0)
    # For a location inside a box, the distance to the farthest side is between half and all of the longer side.
    chosen = np.flatnonzero((longest * _SLACK >= low) & (longest / 2 <= high * _SLACK))
    x1, y1, x2, y2 = boxes.xyxy[chosen].T
    column_box, column, to_side = _cells(points[:width, 0], x1, x2, high, radius=radius)
    row_box, row, to_end = _cells(points[::width, 1], y1, y2, high, radius=radius)
    num_columns = np.bincount(column_box, minlength=len(chosen))
    first_column = np.cumsum(num_columns) - num_columns
    num_rows = len(points) // max(width, 1)
    num_bands = min(max(1, -(-int(num_columns[row_box].sum()) // _MAX_PAIRS)), num_rows)
    edges = np.linspace(0, num_rows, num_bands + 1).astype(int)
    for band in np.split(np.argsort(row, kind="stable"), np.searchsorted(np.sort(row), edges[1:-1])):
        counts = num_columns[row_box[band]]
        starts = np.cumsum(counts) - counts
        pairs = np.arange(counts.sum())
        cell = pairs + np.repeat(first_column[row_box[band]] - starts, counts)
        in_row = np.repeat(band, counts)
        is_match = np.maximum(to_side[cell], to_end[in_row]) >= low
        cell, in_row = cell[is_match], in_row[is_match]
        rank = chosen[row_box[in_row]]
        yield boxes.image[rank] * len(points) + row[in_row] * width + column[cell], rank


def _cells(
    axis: np.ndarray, start: np.ndarray, end: np.ndarray, high: np.float32, *, radius: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the columns (or rows) of a grid inside each box that are at most `high` pixels from both of its sides.

    Args:
        axis: float32, ascending x of the columns.
        start: float32 [M], x1 of the boxes.
        end: float32 [M], x2 of the boxes.
        high: largest distance in pixels.
        radius: center-sampling radius in pixels; 0: no limit.

    Returns:
        The box, the column and the distance from the column to the farther side for each pair, ordered by box.
    """
    lower, upper = start, end
    if radius > 0:
        center = (start + end) / 2
        lower, upper = np.maximum(center - radius, start), np.minimum(center + radius, end)
    axis = np.ascontiguousarray(axis)
    first = np.searchsorted(axis, lower, side="right")
    counts = (np.searchsorted(axis, upper) - first).clip(min=0)
    box = np.repeat(np.arange(len(counts)), counts)
    cell = np.arange(len(box)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    farther = np.maximum(axis[cell] - start[box], end[box] - axis[cell])
    is_near = farther <= high
    return box[is_near], cell[is_near], farther[is_near]
