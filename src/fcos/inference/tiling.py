"""Detection in large pictures: tile by tile, and once in the whole picture for objects that no tile shows whole.

Shape letters: D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..boxes import area, class_wise_nms, intersection
from ..errors import ConfigError
from ..formatting import quote
from ..structures import Instances
from .selection import require_count

Region = tuple[int, int, int, int]
"""Part of a picture: x1, y1, x2, y2 in whole pixels."""
Detect = Callable[[Sequence[Region]], list[Instances]]
"""Function from regions of a picture to the detections in each, in pixels of the region."""

MIN_TILE = 32
"""Smallest side of a tile in pixels."""
_COVERED = 0.5  # part of a cut box that a whole box of its class covers if both are the same object
_LARGE = 0.75  # side of a box relative to the overlap from which the box of the whole picture is used


@dataclass(frozen=True)
class Tiling:
    """Division of a picture into square tiles that overlap.

    Attributes:
        size: side of a tile in pixels of the picture.
        overlap: overlap of two tiles as a fraction of `size`, 0 or more and less than 1. Objects that fit into it are
            whole in at least one tile.

    Raises:
        ConfigError: a value is out of range.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        require_count("tile", self.size, at_least=MIN_TILE)
        if isinstance(self.overlap, str) or not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"overlap: expected a number from 0 to 0.9, found {quote(self.overlap)}")

    @property
    def overlap_pixels(self) -> int:
        """Overlap of two tiles in pixels."""
        return round(self.size * self.overlap)

    @property
    def margin(self) -> float:
        """Distance in pixels from the border of a tile within which a box counts as cut: boxes are not exact."""
        return max(2.0, 0.01 * self.size)

    def regions(self, size: tuple[int, int]) -> list[Region]:
        """Return the tiles of a picture of (height, width), row by row. They have the same size and stay inside."""
        height, width = size
        tops, lefts = self._starts(height), self._starts(width)
        return [(x, y, min(x + self.size, width), min(y + self.size, height)) for y in tops for x in lefts]

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.size)
        return [*range(0, last, self.size - self.overlap_pixels), last]


def detect_in_tiles(
    detect: Detect, size: tuple[int, int], tiling: Tiling, *, nms_threshold: float, batch_size: int
) -> Instances:
    """Detect objects in a picture tile by tile and in the whole picture, and merge the detections.

    A box that an inner border cuts is dropped if a whole box of the same class covers it: one of a neighbouring tile,
    or for objects that are larger than the overlap, one of the whole picture. Of the whole picture only large boxes are
    used. Cut boxes that nothing covers are kept. At last, boxes of the same object in several tiles are suppressed.

    Args:
        detect: function that detects objects in regions.
        size: (height, width) of the picture.
        tiling: division of the picture.
        nms_threshold: IoU above which the lower-scoring of two boxes of a class is suppressed.
        batch_size: number of regions to detect in at a time.

    Returns:
        Detections in pixels of the picture, best first.
    """
    height, width = size
    (whole,) = detect([(0, 0, width, height)])
    sides = whole.boxes[:, 2:] - whole.boxes[:, :2]
    parts = [whole[sides.amax(dim=1) > _LARGE * tiling.overlap_pixels]]
    is_cut = [torch.zeros(len(parts[0]), dtype=torch.bool)]
    for region, found in _detect_regions(detect, tiling.regions(size), batch_size):
        left, top = region[:2]
        moved = found.crop(-left, -top, width - left, height - top)
        parts.append(moved)
        is_cut.append(_touches_inner_border(moved.boxes, region, size, tiling.margin))
    together, cut = Instances.concatenate(parts), torch.cat(is_cut)
    together = together[~_is_covered(together, cut)]
    kept = class_wise_nms(together.boxes, together.scores, together.labels, nms_threshold)
    merged = together[kept]
    return merged[merged.scores.argsort(descending=True, stable=True)]


def _detect_regions(detect: Detect, regions: Sequence[Region], batch_size: int) -> Iterator[tuple[Region, Instances]]:
    for start in range(0, len(regions), batch_size):
        batch = regions[start : start + batch_size]
        yield from zip(batch, detect(batch), strict=True)


def _touches_inner_border(boxes: Tensor, region: Region, size: tuple[int, int], margin: float) -> Tensor:
    """Return which boxes [D, 4] reach a border of their tile that is not one of the picture, bool [D]."""
    height, width = size
    x1, y1, x2, y2 = region
    return (
        ((boxes[:, 0] < x1 + margin) & (x1 > 0))
        | ((boxes[:, 1] < y1 + margin) & (y1 > 0))
        | ((boxes[:, 2] > x2 - margin) & (x2 < width))
        | ((boxes[:, 3] > y2 - margin) & (y2 < height))
    )


def _is_covered(detections: Instances, is_cut: Tensor) -> Tensor:
    """Return which of the cut boxes a whole box of their class covers, bool [D]; False for whole boxes."""
    covered = torch.zeros_like(is_cut)
    boxes, labels = detections.boxes, detections.labels
    for label in labels[is_cut].unique():
        cut = torch.nonzero(is_cut & (labels == label))[:, 0]
        whole = boxes[~is_cut & (labels == label)]
        if len(whole):
            shares = intersection(boxes[cut], whole).amax(dim=1) / area(boxes[cut]).clamp(min=1e-6)
            covered[cut] = shares >= _COVERED
    return covered
