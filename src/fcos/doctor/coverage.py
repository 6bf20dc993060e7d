"""Coverage of a data set by a feature pyramid: best possible recall and ambiguous samples.

These are the quantities of tables 1 and 2 of the FCOS paper (ICCV 2019), for any data set. Locations are assigned to
boxes as in training, see `matching`. A box is learned if at least one location is assigned to it. A location
matches a box if it would be assigned to it without the other boxes of the image.

Shape letters: B boxes of all images, M boxes of an image, L levels, R locations over all levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Annotations
from ..data.geometry import resize_boxes, to_inclusive
from ..data.loader import padded_size
from ..structures import Objects
from .matching import match
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
        self.counted = np.zeros(count, dtype=bool)
        self.fates = np.full(count, DROPPED, dtype=np.int64)
        self.extents = np.zeros((count, 2), dtype=np.float32)
        self.learned_on = np.zeros((count, levels), dtype=bool)
        self.positives, self.ambiguous, self.ambiguous_classes = (np.zeros(levels, dtype=np.int64) for _ in range(3))

    def coverage(self, setting: Setting, annotations: Annotations, images: int) -> Coverage:
        """Return the result for the boxes of the counted images, without crowds."""
        boxes = np.flatnonzero(self.counted & ~annotations.crowd)
        return Coverage(
            setting=setting,
            images=images,
            boxes=boxes,
            labels=annotations.labels[boxes],
            fates=self.fates[boxes],
            extents=self.extents[boxes],
            learned_on=self.learned_on[boxes],
            positives=self.positives,
            ambiguous=self.ambiguous,
            ambiguous_classes=self.ambiguous_classes,
        )


def cover(
    annotations: Annotations,
    setting: Setting,
    *,
    images: np.ndarray | None = None,
    recall_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Coverage:
    """Compute which boxes are learned, why the others are not, and how many locations are ambiguous.

    Args:
        annotations: annotations of a split.
        setting: pyramid and image sizes.
        images: positions of the images to use; None uses all.
        recall_only: compute only what `Coverage.recall` needs. The ambiguous samples are not counted, and the reason
            why a box is not learned is not determined (it is `BETWEEN`, or `DROPPED`).
        progress: callback that receives the number of images done and the total.
    """
    images = np.arange(len(annotations)) if images is None else images
    boxes, is_kept = torch.from_numpy(annotations.boxes), torch.ones(len(annotations.boxes), dtype=torch.bool)
    if setting.box_convention == "inclusive":
        boxes, is_kept = to_inclusive(boxes, torch.from_numpy(annotations.sizes[annotations.image_of]))
    sizes = {i: setting.resized(*annotations.sizes[i].tolist()) for i in images.tolist()}
    padded = {i: padded_size(size, setting.size_divisor) for i, size in sizes.items()}
    tally, points, points_of = _Tally(setting, len(boxes)), [], None
    for done, i in enumerate(sorted(sizes, key=padded.__getitem__), start=1):
        span = annotations.span(i)
        tally.counted[span] = True
        rows = torch.arange(span.start, span.stop)
        rows = rows[is_kept[span]]
        if len(rows):
            if padded[i] != points_of:
                points, points_of = setting.locations(padded[i]), padded[i]
            height, width = annotations.sizes[i].tolist()
            objects = Objects(
                resize_boxes(boxes[rows], (height, width), sizes[i]),
                torch.from_numpy(annotations.labels)[rows],
                torch.from_numpy(annotations.crowd)[rows],
            )
            _count_image(tally, rows.numpy(), points, objects, setting, recall_only=recall_only)
        if progress is not None:
            progress(done, len(images))
    return tally.coverage(setting, annotations, len(images))


def _count_image(
    tally: _Tally, rows: np.ndarray, points: list[Tensor], objects: Objects, setting: Setting, *, recall_only: bool
) -> None:
    """Add an image with at least one box to the tally; `rows` are the positions of its boxes in the tally, [M]."""
    levels = len(points)
    level = torch.repeat_interleave(torch.arange(levels), torch.tensor([len(p) for p in points]))  # [R]
    assigner = setting.assigner
    matches = match(points, objects, assigner)
    positive = matches.assigned >= 0
    learned_on = torch.zeros(len(rows), levels, dtype=torch.bool)
    learned_on[matches.assigned[positive], level[positive]] = True
    learned = learned_on.any(dim=1)
    boxes = objects.boxes
    extra = 1.0 if setting.box_convention == "inclusive" else 0.0
    tally.extents[rows] = (boxes[:, 2:] - boxes[:, :2] + extra).numpy()
    tally.learned_on[rows] = learned_on.numpy()
    tally.positives += np.bincount(level[positive].numpy(), minlength=levels)
    fates = torch.where(learned, LEARNED, BETWEEN)
    if not recall_only:
        tally.ambiguous += np.bincount(level[positive & matches.several].numpy(), minlength=levels)
        tally.ambiguous_classes += np.bincount(level[positive & matches.classes].numpy(), minlength=levels)
        unmatched = torch.nonzero(~matches.has_match).squeeze(1)
        if len(unmatched):
            uncentered = match(points, objects[unmatched], replace(assigner, center_sampling_radius=0.0))
            fates[unmatched[uncentered.has_match]] = OFF_CENTER
            # For a location inside a box, the distance to the farthest side is between half and all of the longer side.
            longest = (boxes[unmatched, 2:] - boxes[unmatched, :2]).amax(dim=1).numpy()
            covered = _levels_in_range(longest / 2, np.nextafter(longest, 0), setting).any(axis=1)
            fates[unmatched[torch.from_numpy(~covered)]] = NO_LEVEL
        fates[~learned & matches.has_match] = TAKEN
    tally.fates[rows] = fates.numpy()
