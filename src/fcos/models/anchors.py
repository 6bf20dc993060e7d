"""Anchors: their grid on the pyramid levels, their assignment to ground truth, and box offsets relative to them.

Shape letters: N images, L levels, A anchors per location, R anchors over all levels, M objects of an image, P positive
anchors, H W map size.

Source: Ren et al., NeurIPS 2015 (arXiv:1506.01497); Lin et al., ICCV 2017 (arXiv:1708.02002). The conventions of
`AnchorGrid`, the matching and the offsets follow maskrcnn-benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import area, intersection, iou
from ..choices import AnchorRounding, BoxConvention, Location
from ..structures import Objects
from .points import BACKGROUND, IGNORED, locations, map_sizes, pyramid_locations

_MAX_PAIRS = 2**22
"""Largest number of pairs (object, anchor) compared at a time, which bounds the memory."""
_CROWD_FRACTION = 0.5
"""Fraction of an unmatched anchor inside a crowd box from which on it is ignored. COCO's evaluation also compares the
intersection with the area of the detection."""


@dataclass(frozen=True)
class AnchorGrid:
    """Options of the anchors of a pyramid.

    Attributes:
        strides: L strides of the levels in pixels.
        sizes: square roots of the anchor areas in pixels, a list for each of the L levels, all of equal length.
        ratios: height / width of the anchors. Every location has an anchor for each ratio and size; sizes vary first.
        location: point of a cell at which its anchors are centred, see `points.pyramid_locations`.
        rounding: `base`: sides of the anchor of size `stride` are rounded to whole pixels, first the width, and then
            scaled (the original); `corners`: corners relative to the location are rounded (torchvision); `none`.
        box_convention: convention of the anchors.
    """

    strides: Sequence[int] = (8, 16, 32, 64, 128)
    sizes: Sequence[Sequence[float]] = tuple(
        tuple(size * 2 ** (k / 3) for k in range(3)) for size in (32.0, 64.0, 128.0, 256.0, 512.0)
    )
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    location: Location = "center"
    rounding: AnchorRounding = "none"
    box_convention: BoxConvention = "continuous"

    @property
    def num_anchors(self) -> int:
        """Number of anchors per location, A."""
        return len(self.sizes[0]) * len(self.ratios)

    def cells(self) -> list[Tensor]:
        """Return the anchors of the cell in the upper left corner of every level, L tensors [A, 4] float32."""
        levels = zip(self.strides, self.sizes, strict=True)
        return [
            torch.tensor([self._anchor(stride, size, ratio) for ratio in self.ratios for size in sizes])
            for stride, sizes in levels
        ]

    def _anchor(self, stride: int, size: float, ratio: float) -> list[float]:
        extra = 1 if self.box_convention == "inclusive" else 0
        if self.rounding == "base":
            width = max(round(math.sqrt(stride**2 / ratio)), 1)  # no anchor is empty
            width, height = (side * size / stride for side in (width, max(round(width * ratio), 1)))
        else:
            width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)
        center = (stride if self.location == "center" else 0) / 2
        x, y = width / 2, height / 2
        if self.rounding == "corners":
            x, y = max(round(x), 1), max(round(y), 1)
        return [center - x, center - y, center + x - extra, center + y - extra]

    def levels(self, maps: Sequence[tuple[int, int]], cells: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the anchors of every level.

        Args:
            maps: L sizes (height, width) of the levels' maps.
            cells: `cells()`, on the device of the result; None: the CPU.

        Returns:
            L tensors [H * W * A, 4] float32 pixels, row by row, the anchors of a location together.
        """
        cells = self.cells() if cells is None else cells
        device = cells[0].device
        if self.location != "corner":
            sizes = zip(maps, self.strides, strict=True)
            corners = [locations(size, stride, offset=0.0, device=device) for size, stride in sizes]
        else:
            corners = pyramid_locations(maps, self.strides, location="corner", device=device)
        pairs = zip(corners, cells, strict=True)
        return [(corner.repeat(1, 2)[:, None] + cell).flatten(0, 1) for corner, cell in pairs]

    def locations(self, maps: Sequence[tuple[int, int]], *, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the locations of every level, see `points.pyramid_locations`."""
        return pyramid_locations(maps, self.strides, location=self.location, device=device)

    def maps(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of every level's map for an image of the padded (height, width) `size`."""
        return map_sizes(size, self.strides)


def flatten_anchors(level: Tensor, num_anchors: int) -> Tensor:
    """Rearrange predictions [N, A * C, H, W] to [N, H * W * A, C], the order of the anchors."""
    return level.unflatten(1, (num_anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


@dataclass(frozen=True)
class AnchorMatcher:
    """Options of the matching of anchors with objects.

    Attributes:
        foreground_iou: IoU in 0..1 from which on an anchor is matched with the object of its highest IoU.
        background_iou: IoU in 0..1 below which an anchor is background. Anchors between the thresholds are ignored.
        low_quality_matches: whether the anchors with an object's highest IoU (all, if several have it) are also
            matched, each with the object of the anchor's highest IoU, even if this is below `foreground_iou`.
        box_convention: convention in which the IoU is computed.
    """

    foreground_iou: float = 0.5
    background_iou: float = 0.4
    low_quality_matches: bool = True
    box_convention: BoxConvention = "continuous"


class AnchorAssignment(NamedTuple):
    """Training targets of every anchor.

    Attributes:
        labels: [N, R] int64: a class 0..K-1, `BACKGROUND`, or `IGNORED` (no classification loss).
        matched: [N, R] int64 index of the matched object among the objects of all images; undefined for anchors without
            an object.
        boxes: [sum of M, 4] boxes of the objects of all images in pixels.
        num_unassigned: 0-dim int64 number of objects, crowd boxes excluded, that are matched with no anchor.
    """

    labels: Tensor
    matched: Tensor
    boxes: Tensor
    num_unassigned: Tensor


@torch.no_grad()
def assign_anchors(anchors: Tensor, targets: Sequence[Objects], matcher: AnchorMatcher) -> AnchorAssignment:
    """Assign an object, background or nothing to every anchor of every image, see `match_anchors`.

    Only the number of objects depends on the data, so the CPU never waits for a GPU.

    Args:
        anchors: [R, 4] float32 anchors of all levels in pixels.
        targets: ground truth of N images in the same pixels.
        matcher: options of the matching.
    """
    none = torch.zeros(0, len(anchors), dtype=torch.int64, device=anchors.device)
    labels, matched, boxes, num_unassigned, start = [none], [none], [anchors[:0]], [none.sum()], 0
    for target in targets:
        objects = target.to(anchors.device)
        index = match_anchors(anchors, objects, matcher)
        found = index.clamp(min=0)
        labels.append((torch.where(index >= 0, objects.labels[found], index) if len(objects) else index)[None])
        matched.append(start + found[None])
        boxes.append(objects.boxes.to(anchors.dtype))
        num_unassigned.append(count_unmatched(objects, index))
        start += len(objects)
    return AnchorAssignment(torch.cat(labels), torch.cat(matched), torch.cat(boxes), torch.stack(num_unassigned).sum())


def count_unmatched(objects: Objects, matched: Tensor) -> Tensor:
    """Count the objects, crowd boxes excluded, that are not in `matched` [R], a result of `match_anchors` (0-dim)."""
    index = (matched + 1).clamp(min=0)  # 0: no object
    is_matched = objects.is_crowd.new_zeros(len(objects) + 1).index_fill(0, index, True)
    return (~(objects.is_crowd | is_matched[1:])).sum()


@torch.no_grad()
def match_anchors(anchors: Tensor, objects: Objects, matcher: AnchorMatcher) -> Tensor:
    """Match the anchors of an image with its objects.

    Crowd boxes are never matched. An anchor without a match is ignored if at least half of it is inside a crowd box.

    Args:
        anchors: [R, 4] in pixels.
        objects: ground truth of the image.
        matcher: options of the matching.

    Returns:
        [R] int64 index of the matched object, `BACKGROUND` or `IGNORED`. Of objects with equal IoU, the first is
        matched. Anchors are compared in chunks, so memory does not grow with R * M.
    """
    if not len(objects):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    convention, boxes, is_crowd = matcher.box_convention, objects.boxes, objects.is_crowd[:, None]
    chunks = anchors.split(max(1, _MAX_PAIRS // len(objects)))
    best = None
    if matcher.low_quality_matches:
        best = torch.stack([iou(boxes, chunk, convention=convention).amax(1) for chunk in chunks]).amax(0)
    matched = []
    for chunk in chunks:
        shared = intersection(boxes, chunk, convention=convention)  # [M, R]
        overlaps = iou(boxes, chunk, convention=convention, shared=shared).masked_fill(is_crowd, -1)
        index = match_by_iou(overlaps, best, matcher)
        in_crowd = shared.masked_fill(~is_crowd, 0).amax(0) / area(chunk, convention=convention)
        matched.append(torch.where((index < 0) & (in_crowd >= _CROWD_FRACTION), IGNORED, index))
    return torch.cat(matched)


def match_by_iou(overlaps: Tensor, best: Tensor | None, matcher: AnchorMatcher) -> Tensor:
    """Match anchors with objects, given their IoU.

    Args:
        overlaps: [M, R] IoU of every object and anchor.
        best: [M] highest IoU of every object with all anchors, of which these may be a part; None: no low-quality
            matches. An object that overlaps with no anchor has none.
        matcher: thresholds.

    Returns:
        [R] int64 index of the matched object, `BACKGROUND` or `IGNORED`.
    """
    if not len(overlaps):
        return torch.full(overlaps.shape[1:], BACKGROUND, device=overlaps.device)
    highest, index = overlaps.max(dim=0)
    unmatched = torch.where(highest < matcher.background_iou, BACKGROUND, IGNORED)
    is_match = highest >= matcher.foreground_iou
    if best is not None:
        is_match |= ((overlaps == best[:, None]) & (overlaps > 0)).any(dim=0)
    return torch.where(is_match, index, unmatched)


@dataclass(frozen=True)
class Sampler:
    """Options of the sampling of anchors or proposals for the losses.

    Attributes:
        samples_per_image: largest number of samples per image.
        positive_fraction: largest fraction of positives among `samples_per_image`, 0..1. Negatives take the place of
            missing positives, but not the reverse.
    """

    samples_per_image: int = 256
    positive_fraction: float = 0.5


def sample_balanced(labels: Tensor, sampler: Sampler, *, seed: int) -> Tensor:
    """Draw positives and negatives of an image at random.

    Args:
        labels: [R] int64: 0 or more (positive), `BACKGROUND` (negative) or `IGNORED` (never drawn).
        sampler: numbers of samples.
        seed: seed of the draw, 0..2^63-1. The draw depends only on it and on the labels without `IGNORED`, neither on
            the device nor on other images.

    Returns:
        [S] int64 indices of the samples in ascending order.

    Source: Ren et al., NeurIPS 2015 (arXiv:1506.01497), section 3.1.3.
    """
    generator = torch.Generator().manual_seed(seed)
    most_positives = int(sampler.samples_per_image * sampler.positive_fraction)
    positives = _draw(torch.nonzero(labels >= 0).squeeze(1), most_positives, generator)
    most_negatives = sampler.samples_per_image - len(positives)
    negatives = _draw(torch.nonzero(labels == BACKGROUND).squeeze(1), most_negatives, generator)
    return torch.cat([positives, negatives]).sort().values


def _draw(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw at most `count` of the indices without replacement."""
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), generator=generator)[:count].to(indices.device)]


@dataclass(frozen=True)
class BoxCoder:
    """Box offsets relative to reference boxes (anchors or proposals).

    The offsets are (dx, dy, dw, dh): the shift of the centre in widths and heights of the reference, and the logarithms
    of the ratios of the sides, each multiplied by its weight.

    Attributes:
        weights: factors of dx, dy, dw and dh.
        box_convention: convention of the boxes.
        max_log_ratio: largest logarithm of the ratio of two sides that `decode` uses; larger ones are clipped.

    Source: Girshick et al., CVPR 2014 (arXiv:1311.2524), appendix C.
    """

    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_convention: BoxConvention = "continuous"
    max_log_ratio: float = math.log(1000 / 16)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Compute the offsets [..., 4] of boxes [..., 4] relative to references [..., 4]; all have positive sides."""
        centers, sides = self._to_centers(boxes)
        reference_centers, reference_sides = self._to_centers(references)
        offsets = [(centers - reference_centers) / reference_sides, (sides / reference_sides).log()]
        return torch.cat(offsets, dim=-1) * self._weights(boxes)

    def decode(self, offsets: Tensor, references: Tensor) -> Tensor:
        """Compute boxes from offsets, the inverse of `encode`.

        Args:
            offsets: [..., 4], or [..., 4 * K] with four offsets for each of K classes.
            references: [..., 4].

        Returns:
            Boxes of the shape of `offsets`.
        """
        shifts, logs = (offsets.unflatten(-1, (-1, 4)) / self._weights(offsets)).split(2, dim=-1)
        centers, sides = (x.unsqueeze(-2) for x in self._to_centers(references))
        centers, sides = shifts * sides + centers, logs.clamp(max=self.max_log_ratio).exp() * sides
        extra = 1.0 if self.box_convention == "inclusive" else 0.0
        return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides - extra], dim=-1).flatten(-2)

    def _weights(self, like: Tensor) -> Tensor:
        """Return the weights [4] on the device of a tensor; `new_tensor` would copy them from the CPU and wait."""
        return torch.stack([like.new_full((), weight) for weight in self.weights])

    def _to_centers(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return centres and sides, each [..., 2] (x, y)."""
        corner, other = boxes.split(2, dim=-1)
        sides = other - corner + (1.0 if self.box_convention == "inclusive" else 0.0)
        return corner + 0.5 * sides, sides
