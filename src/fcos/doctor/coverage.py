"""Coverage of a data set by a feature pyramid: best possible recall and ambiguous samples.

These are the quantities of tables 1 and 2 of the FCOS paper (ICCV 2019), for any data set. Locations are assigned to
boxes as in training, see `matching`. A box is learned if at least one location is assigned to it. A location
matches a box if it would be assigned to it without the other boxes of the image.

Shape letters: B boxes of all images, M boxes of a few images, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Annotations
from ..data.geometry import to_inclusive
from ..data.loader import padded_size
from ..masks import gather_groups
from .matching import Boxes, match
from .pieces import split_evenly
from .setting import Setting

LEARNED, TAKEN, NO_LEVEL, OFF_CENTER, BETWEEN, DROPPED = range(6)
FATES = {
    LEARNED: "learned",
    TAKEN: "smaller boxes take all their locations",
    NO_LEVEL: "no level's size range covers them",
    OFF_CENTER: "no location is within the center sampling radius",
    BETWEEN: "they lie between the locations of the levels for their size",
    DROPPED: "a pixel or less, which the inclusive convention drops",
}
"""Outcomes for a box: learned, or the reason why no location is assigned to it."""
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO object sizes by name: minimum area (included) and maximum area (excluded) in square pixels."""
_MAX_BOXES = 1024  # boxes of one or more images at once, to limit memory use


class LevelCounts(NamedTuple):
    """Counts of a pyramid level.

    Attributes:
        stride: pixels.
        boxes: number of boxes whose `Coverage.expected_level` is this level.
        learned: number of these boxes that are learned, on any level.
        locations: number of positive locations of the level, which are assigned to a box.
        ambiguous: number of positive locations that match several boxes.
        ambiguous_classes: number of positive locations that match boxes of different classes.
    """

    stride: int
    boxes: int
    learned: int
    locations: int
    ambiguous: int
    ambiguous_classes: int


@dataclass(frozen=True, eq=False)
class Coverage:
    """Result of `cover` for the boxes of a number of images, without crowds.

    Attributes:
        setting: pyramid and image sizes.
        images: number of images.
        boxes: int64 [B], positions in the annotations.
        labels: int64 [B].
        fates: int64 [B], a key of `FATES`.
        extents: float32 [B, 2], width and height in pixels of the resized image, in the box convention of the setting.
        expected_level: int64 [B], first level whose size range contains half of the longer side; -1 if no range does.
        learned_on: bool [B, L], levels with a location that is assigned to the box.
        positives: int64 [L], number of positive locations, which are assigned to a box.
        ambiguous: int64 [L], number of positive locations that match several boxes.
        ambiguous_classes: int64 [L], number of positive locations that match boxes of different classes.
    """

    setting: Setting
    images: int
    boxes: np.ndarray
    labels: np.ndarray
    fates: np.ndarray
    extents: np.ndarray
    learned_on: np.ndarray
    positives: np.ndarray
    ambiguous: np.ndarray
    ambiguous_classes: np.ndarray
    expected_level: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        longest = self.extents.max(axis=1) - (self.setting.box_convention == "inclusive")
        in_range = _levels_in_range(longest / 2, longest / 2, self.setting)
        object.__setattr__(self, "expected_level", np.where(in_range.any(axis=1), in_range.argmax(axis=1), -1))

    @property
    def recall(self) -> float:
        """Best possible recall: the share of boxes that are learned; NaN without boxes."""
        return _share((self.fates == LEARNED).sum(), len(self.fates))

    @property
    def areas(self) -> np.ndarray:
        """Areas of the boxes, [B] square pixels of the resized image."""
        return self.extents.prod(axis=1)

    def count(self, chosen: np.ndarray) -> tuple[int, int]:
        """Count the boxes selected by a mask [B], and those of them that are learned."""
        return int(chosen.sum()), int((self.fates[chosen] == LEARNED).sum())

    def by_size(self) -> dict[str, tuple[int, int]]:
        """Count the boxes, and those that are learned, for every COCO object size."""
        return {name: self.count((self.areas >= low) & (self.areas < high)) for name, (low, high) in SIZES.items()}

    def by_level(self) -> list[LevelCounts]:
        """Return the counts of every level."""
        counts = (self.positives.tolist(), self.ambiguous.tolist(), self.ambiguous_classes.tolist())
        return [
            LevelCounts(stride, *self.count(self.expected_level == level), *rest)
            for level, (stride, *rest) in enumerate(zip(self.setting.strides, *counts, strict=True))
        ]


def _levels_in_range(least: np.ndarray, most: np.ndarray, setting: Setting) -> np.ndarray:
    """Return [M, L] bool: levels whose size range overlaps `least` to `most`, both [M] pixels; ends are included."""
    ranges = [(low, np.inf if high is None else high) for low, high in setting.size_ranges]
    return np.stack([(most >= low) & (least <= high) for low, high in ranges], axis=1)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


class _Tally:
    """Counts that `cover` accumulates over the images."""

    def __init__(self, setting: Setting, count: int) -> None:
        levels = len(setting.strides)
        self.fates = np.full(count, DROPPED, dtype=np.int64)
        self.extents = np.zeros((count, 2), dtype=np.float32)
        self.learned_on = np.zeros((count, levels), dtype=bool)
        self.positives, self.ambiguous, self.ambiguous_classes = (np.zeros(levels, dtype=np.int64) for _ in range(3))


def cover(
    annotations: Annotations,
    setting: Setting,
    *,
    images: np.ndarray | None = None,
    recall_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Coverage:
    """Compute which boxes are learned, why the others are not, and how many locations are ambiguous.

    Images of the same padded size have the same locations and are computed together, a few thousand boxes at a time.

    Args:
        annotations: annotations of a split.
        setting: pyramid and image sizes.
        images: positions of the images to use, without repetition; None uses all.
        recall_only: compute only what `Coverage.recall` needs. The ambiguous samples are not counted, and the reason
            why a box is not learned is not determined (it is `BETWEEN`, or `DROPPED`).
        progress: callback that receives the number of images done and the total.
    """
    images = np.arange(len(annotations)) if images is None else np.sort(images)
    boxes, is_kept = torch.from_numpy(annotations.boxes), torch.ones(len(annotations.boxes), dtype=torch.bool)
    if setting.box_convention == "inclusive":
        boxes, is_kept = to_inclusive(boxes, torch.from_numpy(annotations.sizes[annotations.image_of]))
    sizes, size_of = np.unique(annotations.sizes[images], axis=0, return_inverse=True)
    resized = np.array([setting.resized(*size) for size in sizes.tolist()]).reshape(-1, 2)
    padded = np.array([padded_size(size, setting.size_divisor) for size in resized.tolist()]).reshape(-1, 2)
    ratios = (resized / sizes)[:, [1, 0, 1, 0]].astype(np.float32)  # as in `resize_boxes`
    grids, grid_of = np.unique(padded, axis=0, return_inverse=True)
    tally, done = _Tally(setting, len(boxes)), 0
    for number, grid in enumerate(grids.tolist()):
        points = setting.locations((grid[0], grid[1]))
        in_grid = np.flatnonzero(grid_of.ravel()[size_of.ravel()] == number)
        counts = np.diff(annotations.offsets)[images[in_grid]]
        for piece in split_evenly(counts, _MAX_BOXES):
            chosen, length = in_grid[piece], counts[piece]
            rows, _ = gather_groups(annotations.offsets, images[chosen])
            image = np.repeat(np.arange(len(chosen)), length)
            kept = is_kept.numpy()[rows]
            rows, image = rows[kept], image[kept]
            xyxy = boxes.numpy()[rows] * ratios[size_of.ravel()[chosen]][image]
            is_object = ~annotations.crowd[rows]
            tally.extents[rows] = xyxy[:, 2:] - xyxy[:, :2] + np.float32(setting.box_convention == "inclusive")
            objects = Boxes(xyxy, annotations.labels[rows], image)[is_object]
            _count(tally, rows[is_object], points, objects, setting, recall_only=recall_only)
            done += len(chosen)
            if progress is not None:
                progress(done, len(images))
    counted = np.zeros(len(annotations), dtype=bool)
    counted[images] = True
    chosen = np.flatnonzero(counted[annotations.image_of] & ~annotations.crowd)
    return Coverage(
        setting=setting,
        images=len(images),
        boxes=chosen,
        labels=annotations.labels[chosen],
        fates=tally.fates[chosen],
        extents=tally.extents[chosen],
        learned_on=tally.learned_on[chosen],
        positives=tally.positives,
        ambiguous=tally.ambiguous,
        ambiguous_classes=tally.ambiguous_classes,
    )


def _count(
    tally: _Tally, rows: np.ndarray, points: list[Tensor], boxes: Boxes, setting: Setting, *, recall_only: bool
) -> None:
    """Add boxes of images with the same locations to the tally; `rows` are their positions in the tally, [M]."""
    has_match = np.zeros(len(rows), dtype=bool)
    for level, _, assigned, several, classes, matched in match(points, boxes, setting.assigner):
        tally.learned_on[rows[assigned], level] = True
        tally.positives[level] += len(assigned)
        has_match[matched] = True
        if not recall_only:
            tally.ambiguous[level] += several.sum()
            tally.ambiguous_classes[level] += classes.sum()
    learned = tally.learned_on[rows].any(axis=1)
    tally.fates[rows] = np.where(learned, LEARNED, BETWEEN)
    if recall_only:
        return
    tally.fates[rows[~learned & has_match]] = TAKEN
    unmatched = np.flatnonzero(~has_match)
    if not len(unmatched):
        return
    everywhere = replace(setting.assigner, center_sampling_radius=0.0)
    for positives in match(points, boxes[unmatched], everywhere):
        tally.fates[rows[unmatched[positives.matched]]] = OFF_CENTER
    # For a location inside a box, the distance to the farthest side is between half and all of the longer side.
    longest = (boxes.xyxy[unmatched, 2:] - boxes.xyxy[unmatched, :2]).max(axis=1)
    covered = _levels_in_range(longest / 2, np.nextafter(longest, np.float32(0)), setting).any(axis=1)
    tally.fates[rows[unmatched[~covered]]] = NO_LEVEL
