"""Masks of objects as polygons, and masks of detections as grids of probabilities.

The mask of an object is the union of its rings, closed polygons with the points (x, y) in continuous pixels of the
stated frame. A ring that crosses itself covers the points that it encloses an odd number of times. Rings are rasterised
by hotcoco, with the result of pycocotools.

Shape letters: M objects, R rings, T points, P boxes, D detections, S size of a grid, H W size of a frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from .choices import BoxConvention

THRESHOLD = 0.5
"""Probability above which a pixel belongs to the mask of a detection."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of M objects as polygons in flat arrays, which stay in main memory.

    Attributes:
        points: float32 or float64 [T, 2], (x, y) in pixels.
        ring_offsets: int64 [R + 1], start of each ring in `points`. A ring has three points or more.
        object_offsets: int64 [M + 1], start of each object in the rings. An object without rings has no mask.
    """

    points: np.ndarray
    ring_offsets: np.ndarray
    object_offsets: np.ndarray

    @staticmethod
    def from_polygons(objects: Sequence[Sequence[Sequence[float] | np.ndarray]], *, dtype: Any = np.float64) -> Masks:
        """Build the masks from the rings of every object, each a flat list x1, y1, x2, y2, ... as in COCO files.

        Args:
            objects: rings of every object.
            dtype: NumPy type of the coordinates.

        Raises:
            ValueError: a ring has fewer than three points, or an odd number of coordinates.
        """
        rings = [np.asarray(ring, dtype=dtype) for rings in objects for ring in rings]
        for ring in rings:
            if ring.size < 6 or ring.size % 2:
                raise ValueError(
                    f"a polygon needs three points or more, x1, y1, x2, y2, ...; found {ring.size} numbers"
                )
        return Masks(
            np.concatenate([np.zeros((0, 2), dtype), *(ring.reshape(-1, 2) for ring in rings)]),
            _to_offsets([ring.size // 2 for ring in rings]),
            _to_offsets([len(rings) for rings in objects]),
        )

    @staticmethod
    def from_bitmaps(bitmaps: Iterable[np.ndarray | Tensor], *, dtype: Any = np.float64) -> Masks:
        """Build the masks whose rasterisation is `bitmaps`, M times bool [H, W], from the outlines of their pixels."""
        outlines = [outline(np.asarray(bitmap, dtype=bool)) for bitmap in bitmaps]
        return Masks.from_polygons([[ring.reshape(-1)] if len(ring) else [] for ring in outlines], dtype=dtype)

    @staticmethod
    def empty(count: int = 0, *, dtype: Any = np.float64) -> Masks:
        """Build `count` objects without mask."""
        return Masks.from_polygons([[]] * count, dtype=dtype)

    @staticmethod
    def concatenate(parts: Sequence[Masks]) -> Masks:
        """Concatenate the objects of one or more parts; `split` is the inverse."""
        return Masks(
            np.concatenate([part.points for part in parts]),
            _to_offsets(np.concatenate([np.diff(part.ring_offsets) for part in parts])),
            _to_offsets(np.concatenate([np.diff(part.object_offsets) for part in parts])),
        )

    def split(self, counts: Sequence[int]) -> list[Masks]:
        """Split into parts with the given numbers of objects."""
        ends = [int(end) for end in np.cumsum(counts)]
        return [self[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def __len__(self) -> int:
        return len(self.object_offsets) - 1

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | np.ndarray | Tensor) -> Masks:
        """Select objects by a mask, indices or a slice. An integer gives `Masks` of one object."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if isinstance(index, Sequence) and not len(index):
            index = slice(0)
        if isinstance(index, slice):
            positions = np.arange(*index.indices(len(self)))
        else:
            positions = np.atleast_1d(np.arange(len(self))[index])
        rings, object_offsets = gather_groups(self.object_offsets, positions)
        points, ring_offsets = gather_groups(self.ring_offsets, rings)
        return Masks(self.points[points], ring_offsets, object_offsets)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Masks:
        """Return the masks unchanged: polygons are rasterised in main memory, and `crop` copies its result instead."""
        return self

    def astype(self, dtype: Any) -> Masks:
        """Convert the coordinates to another NumPy type."""
        return replace(self, points=self.points.astype(dtype, copy=False))

    def polygons(self) -> list[list[np.ndarray]]:
        """Return the rings of every object, each [points, 2]."""
        rings = np.split(self.points, self.ring_offsets[1:-1]) if len(self.ring_offsets) > 1 else []
        return [rings[start:end] for start, end in zip(self.object_offsets[:-1], self.object_offsets[1:], strict=True)]

    def scale(self, scale_x: float, scale_y: float) -> Masks:
        """Multiply the coordinates with factors, as when the image is resized."""
        return replace(self, points=self.points * self.points.dtype.type([scale_x, scale_y]))

    def translate(self, x: float, y: float) -> Masks:
        """Add (x, y) pixels, as when the image is cropped. Parts outside the frame stay, and are never rasterised."""
        return replace(self, points=self.points + self.points.dtype.type([x, y]))

    def flip(self, width: int, *, convention: BoxConvention = "continuous") -> Masks:
        """Flip horizontally with the image: x becomes width - x, or width - 1 - x if `inclusive` (the original)."""
        right_edge = width if convention == "continuous" else width - 1
        return replace(
            self, points=self.points * self.points.dtype.type([-1, 1]) + self.points.dtype.type([right_edge, 0])
        )

    def boxes(self) -> Tensor:
        """Return the boxes around the points of every object, float32 [M, 4] XYXY; zeros for objects without mask."""
        return torch.from_numpy(self.extents().astype(np.float32))

    def extents(self) -> np.ndarray:
        """Return the boxes of `boxes` in the precision of the points, [M, 4]."""
        boxes = np.zeros((len(self), 4), dtype=self.points.dtype)
        starts = self.ring_offsets[self.object_offsets]
        with_points = starts[1:] > starts[:-1]
        if with_points.any():
            first = starts[:-1][with_points]
            boxes[with_points, :2] = np.minimum.reduceat(self.points, first)
            boxes[with_points, 2:] = np.maximum.reduceat(self.points, first)
        return boxes

    def to_rles(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Rasterise into a frame of size (height, width); return COCO's RLEs, dicts of `size` and `counts` (bytes)."""
        from hotcoco import mask as rle

        height, width = size
        nothing = rle.encode(np.zeros((height, width), dtype=np.uint8))
        flat, ends = self.points.astype(np.float64).reshape(-1).tolist(), (2 * self.ring_offsets).tolist()
        rings = [rle.fr_poly(flat[start:end], height, width) for start, end in itertools.pairwise(ends)]
        parts = [rings[start:end] for start, end in itertools.pairwise(self.object_offsets.tolist())]
        return [rle.merge(part) if len(part) > 1 else part[0] if part else nothing for part in parts]

    def to_bitmaps(self, size: tuple[int, int]) -> Tensor:
        """Rasterise into a frame of size (height, width); return bool [M, H, W]."""
        return decode(self.to_rles(size)) if len(self) else torch.zeros(0, *size, dtype=torch.bool)

    def crop(self, boxes: Tensor, size: int) -> Tensor:
        """Rasterise the part of every mask in a box, scaled to a square: the target of a mask head.

        Args:
            boxes: [P, 4] XYXY in the frame of the masks, one for each of P = M masks. Sides shorter than a pixel count
                as one pixel.
            size: side S of the square in pixels.

        Returns:
            float32 [P, S, S], 0 or 1, on the device of the boxes.

        Source: maskrcnn-benchmark (MIT), `PolygonInstance.crop` and `resize`, with its float32 arithmetic.
        """
        assert len(boxes) == len(self)
        corners = boxes.detach().cpu().to(torch.float32).numpy()
        num_points = np.diff(self.ring_offsets[self.object_offsets])
        origins = np.repeat(corners[:, :2], num_points, axis=0)
        sides = np.maximum(corners[:, 2:].astype(np.float64) - corners[:, :2], 1.0)
        ratios = np.repeat((size / sides).astype(np.float32), num_points, axis=0)
        points = (self.points.astype(np.float32) - origins) * ratios
        return replace(self, points=points).to_bitmaps((size, size)).to(boxes.device, torch.float32)


def _to_offsets(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def gather_groups(offsets: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of some groups, where group i has the rows from `offsets[i]` to `offsets[i + 1]`.

    Args:
        offsets: int64 [G + 1].
        positions: int64 [N], positions of groups.

    Returns:
        The rows of these groups, int64 [R], and the offsets of these groups among the rows, int64 [N + 1].
    """
    counts = offsets[positions + 1] - offsets[positions]
    new_offsets = _to_offsets(counts)
    return np.arange(new_offsets[-1]) + np.repeat(offsets[positions] - new_offsets[:-1], counts), new_offsets


def decode(codes: Sequence[dict[str, Any]]) -> Tensor:
    """Decode COCO's RLEs of the same size, at least one: bool [M, H, W]."""
    from hotcoco import mask as rle

    return torch.from_numpy(rle.decode(list(codes)).transpose(2, 0, 1).astype(bool))  # [H, W, M] -> [M, H, W]


def outline(bitmap: np.ndarray) -> np.ndarray:
    """Trace the border of the pixels of a bitmap, bool [H, W], as one ring.

    The ring follows every part and hole, and returns to its start after each: the ways there and back cancel, because
    a ring covers the points that it encloses an odd number of times.

    Returns:
        float64 [T, 2], (x, y) of the corners; empty for an empty bitmap.
    """
    cells = np.pad(bitmap, 1).astype(np.int8)
    top_left, top_right, bottom_left, bottom_right = cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]
    is_odd = (top_left ^ top_right ^ bottom_left ^ bottom_right) == 1
    is_crossing = (top_left == bottom_right) & (top_right == bottom_left) & (top_left != top_right)
    rows, columns = np.nonzero(is_odd | is_crossing)
    repeats = 1 + is_crossing[rows, columns]  # two corners of the border meet where two pixels touch diagonally
    rows, columns = np.repeat(rows, repeats), np.repeat(columns, repeats)
    # Consecutive corners of a row are the ends of a horizontal edge, those of a column the ends of a vertical one.
    horizontal = np.arange(len(rows)) ^ 1
    by_column = np.lexsort((rows, columns))
    vertical = np.empty_like(horizontal)
    vertical[by_column] = by_column[np.arange(len(rows)) ^ 1]
    walk: list[int] = []
    visited = np.zeros(len(rows), dtype=bool)
    for start in range(len(rows)):
        if visited[start]:
            continue
        corner, loop = start, []
        while not visited[corner]:
            other = int(horizontal[corner])
            visited[[corner, other]] = True
            loop += [corner, other]
            corner = int(vertical[other])
        walk += [*loop, start, *walk[:1]]
    return np.stack([columns[walk], rows[walk]], axis=1).astype(np.float64)


def ellipse(center: tuple[float, float], radii: tuple[float, float], *, angle: float = 0.0) -> np.ndarray:
    """Return a ring whose distance from an ellipse is below 0.05 pixels, float64 [T, 2].

    Args:
        center: (x, y).
        radii: half axes in x and y, before the rotation.
        angle: rotation in radians, clockwise in the image.
    """
    largest = max(*np.abs(radii), 1.0)
    count = max(12, math.ceil(math.pi / math.acos(1 - 0.05 / largest)))
    turns = np.arange(count) * (2 * math.pi / count)
    x, y = radii[0] * np.cos(turns), radii[1] * np.sin(turns)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([center[0] + x * cos - y * sin, center[1] + x * sin + y * cos], axis=1)


def paste(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Resize the grid of every detection to its box, and paste it into a frame.

    Args:
        grids: [D, S, S] probabilities in 0..1, on a grid that spans the box.
        boxes: [D, 4] XYXY in pixels of the frame, `inclusive`: x2 and y2 are the last covered pixels.
        size: (height, width) of the frame.

    Yields:
        The probabilities of one detection, float32 [H, W] in main memory, 0 outside its box.

    Source: maskrcnn-benchmark (MIT), `paste_mask_in_image`: grid and box are enlarged by one cell on every side, and
    the corners of the box are truncated to integers.
    """
    height, width = size
    grids, boxes = pad(grids.detach().float(), (1, 1, 1, 1)).cpu(), boxes.detach().float().cpu()
    enlarged = 1.0 if not len(grids) else grids.shape[-1] / (grids.shape[-1] - 2)
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * enlarged
    corners = torch.cat([center - half, center + half], dim=1).to(torch.int64).tolist()
    for grid, (x1, y1, x2, y2) in zip(grids, corners, strict=True):
        sides = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        resized = interpolate(grid[None, None], size=sides, mode="bilinear", align_corners=False)[0, 0]
        frame = torch.zeros(height, width)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        if left < right and top < bottom:
            frame[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
        yield frame


def paste_exactly(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Sample the grid of every detection at the centres of the pixels of a frame.

    Args:
        grids: [D, S, S] probabilities in 0..1, on a grid that spans the box.
        boxes: [D, 4] XYXY in pixels of the frame, `continuous`.
        size: (height, width) of the frame.

    Yields:
        The probabilities of one detection, float32 [H, W] in main memory, 0 beyond the pixels next to its box.

    Source: detectron2 (Apache-2.0), `paste_masks_in_image`; mmdetection (Apache-2.0) does the same.
    """
    height, width = size
    limits = torch.tensor([width, height])
    grids, boxes = grids.detach().float().cpu(), boxes.detach().float().cpu()
    for grid, corner, other in zip(grids, boxes[:, :2], boxes[:, 2:], strict=True):
        frame = torch.zeros(height, width)
        left, top = (corner.floor().long() - 1).clamp(min=0).tolist()
        right, bottom = (other.ceil().long() + 1).minimum(limits).tolist()
        if left < right and top < bottom and (other > corner).all():
            x = torch.arange(left, right) + 0.5
            y = torch.arange(top, bottom) + 0.5
            columns, rows = ((c - corner[i]) / (other[i] - corner[i]) * 2 - 1 for i, c in enumerate((x, y)))
            points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2)  # [h, w, 2] in -1..1
            frame[top:bottom, left:right] = grid_sample(grid[None, None], points[None], align_corners=False)[0, 0]
        yield frame


def encode(bitmap: np.ndarray | Tensor) -> dict[str, Any]:
    """Encode a mask in main memory, bool [H, W], as COCO's RLE for JSON: `size` (height, width), `counts` as text."""
    from hotcoco import mask as rle

    return to_text(rle.encode(np.asarray(bitmap).astype(np.uint8, order="F")))


def to_text(code: dict[str, Any]) -> dict[str, Any]:
    """Return an RLE with `counts` as text instead of bytes, as in JSON files."""
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
