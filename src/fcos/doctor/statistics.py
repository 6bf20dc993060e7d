"""Counts and histograms of the splits, and differences between the splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.cache import decoded_bytes
from ..data.dataset import Annotations
from .coverage import SIZES

SHIFT = 5.0
"""Difference between the shares of a class in two splits, in standard errors, above which it is reported. It is large
because the boxes of an image are not independent, so that two or three standard errors mean nothing."""
SHIFT_FACTOR = 1.5
"""Ratio of the shares above which the difference is reported, provided that it also exceeds `SHIFT`."""
SIZE_SHIFT_FACTOR = 1.5
"""Ratio of the median box sizes of a class in two splits above which the difference is reported, provided that it also
exceeds `SHIFT` standard errors."""
_MIN_SAMPLES = 20  # boxes that a meaningful median needs
_SIZE_EDGES = 2.0 ** np.arange(1, 11.01, 0.5)
_SIDE_EDGES = 2.0 ** np.arange(4, 14.01, 0.5)
_RATIO_EDGES = 2.0 ** np.arange(-4, 4.01, 0.5)


@dataclass(frozen=True)
class SplitCounts:
    """Counts of the usable annotations of a split.

    Attributes:
        images: number of images.
        images_without_boxes: number of images without boxes.
        boxes: number of boxes, including crowds.
        crowd: number of crowd boxes.
        per_class: number of boxes by class name, without crowds.
        per_size: number of boxes by COCO object size after the resize of training, without crowds.
        decoded_bytes: size of the decoded images, the space that `data.cache` needs.
    """

    images: int
    images_without_boxes: int
    boxes: int
    crowd: int
    per_class: dict[str, int]
    per_size: dict[str, int]
    decoded_bytes: int


class Histogram(NamedTuple):
    """Histogram of a quantity; a bin includes its lower edge, and the last bin also its upper edge.

    Attributes:
        name: name of the quantity, with its unit.
        edges: [bins + 1]; the first and the last bin also count values beyond them.
        counts: [bins] number of values.
        median: median of the values; None without values.
    """

    name: str
    edges: list[float]
    counts: list[int]
    median: float | None


def describe(
    splits: Mapping[str, Annotations], resized: Callable[[int, int], tuple[int, int]]
) -> tuple[dict[str, SplitCounts], dict[str, list[Histogram]]]:
    """Compute counts and histograms of every split; the histograms of all splits have the same edges.

    Args:
        splits: annotations by split.
        resized: function from the height and width of an image to its (height, width) in training.

    Returns:
        Counts by split, and histograms by split.
    """
    max_boxes = max((int(np.diff(annotations.offsets).max(initial=1)) for annotations in splits.values()), default=1)
    edges = np.unique(np.linspace(0, max_boxes + 1, min(max_boxes + 2, 21)).astype(int)).astype(float)
    described = {split: _describe(annotations, resized, edges) for split, annotations in splits.items()}
    return {s: counts for s, (counts, _) in described.items()}, {s: rows for s, (_, rows) in described.items()}


def _describe(
    annotations: Annotations, resized: Callable[[int, int], tuple[int, int]], number_edges: np.ndarray
) -> tuple[SplitCounts, list[Histogram]]:
    per_image = np.diff(annotations.offsets)
    objects = ~annotations.crowd
    extents = _resized_extents(annotations, resized)[objects]
    areas = extents.prod(axis=1)
    counts = SplitCounts(
        images=len(annotations),
        images_without_boxes=int((per_image == 0).sum()),
        boxes=len(annotations.boxes),
        crowd=int(annotations.crowd.sum()),
        per_class=dict(zip(annotations.class_names, annotations.boxes_per_class().tolist(), strict=True)),
        per_size={name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in SIZES.items()},
        decoded_bytes=decoded_bytes(annotations.sizes),
    )
    return counts, [
        _histogram("Box size: sqrt of area, pixels after the resize of training", np.sqrt(areas), _SIZE_EDGES),
        _histogram("Box shape: width over height", extents[:, 0] / extents[:, 1], _RATIO_EDGES),
        _histogram("Boxes of an image", per_image, number_edges),
        _histogram("Image size: shorter side before resizing, pixels", annotations.sizes.min(axis=1), _SIDE_EDGES),
        _histogram("Image shape: width over height", annotations.sizes[:, 1] / annotations.sizes[:, 0], _RATIO_EDGES),
    ]


def _resized_extents(annotations: Annotations, resized: Callable[[int, int], tuple[int, int]]) -> np.ndarray:
    """Return the width and height of every box after the resize of training, [B, 2] pixels."""
    scales = [np.divide(resized(*size), size) for size in annotations.sizes.tolist()]  # vertical, horizontal
    scale = np.array(scales).reshape(-1, 2)[annotations.image_of]
    return (annotations.boxes[:, 2:] - annotations.boxes[:, :2]) * scale[:, ::-1]


def _histogram(name: str, values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(name, edges.tolist(), counts.tolist(), float(np.median(values)) if len(values) else None)


def class_shifts(counts: Mapping[str, SplitCounts]) -> list[tuple[str, str, float, float]]:
    """Find classes much rarer or more frequent than in train: (class, split, share in train, share in split)."""
    if "train" not in counts:
        return []
    shifts = []
    train = counts["train"].per_class
    for split, other in counts.items():
        totals = sum(train.values()), sum(other.per_class.values())
        if split == "train" or not all(totals):
            continue
        for name, number in other.per_class.items():
            numbers = train.get(name, 0), number
            shares = numbers[0] / totals[0], numbers[1] / totals[1]
            pooled = sum(numbers) / sum(totals)
            error = np.sqrt(pooled * (1 - pooled) * (1 / totals[0] + 1 / totals[1]))
            is_far = max(shares) > SHIFT_FACTOR * min(shares)
            if is_far and abs(shares[0] - shares[1]) > SHIFT * error:
                shifts.append((name, split, *shares))
    return shifts


def size_shifts(
    splits: Mapping[str, Annotations], resized: Callable[[int, int], tuple[int, int]]
) -> list[tuple[str, str, float, float]]:
    """Find classes whose boxes are much smaller or larger than in train: (class, split, median in train, in split).

    Args:
        splits: annotations by split, with the same classes in all splits.
        resized: function from the height and width of an image to its (height, width) in training.

    Returns:
        The medians are of the square root of the area, in pixels after the resize of training.
    """
    if "train" not in splits:
        return []
    sizes = {
        split: np.log(np.maximum(_resized_extents(annotations, resized), 1e-6)).mean(axis=1)
        for split, annotations in splits.items()
    }
    shifts = []
    for split in splits.keys() - {"train"}:
        for label, name in enumerate(splits[split].class_names):
            usual, other = (sizes[s][(splits[s].labels == label) & ~splits[s].crowd] for s in ("train", split))
            if min(len(usual), len(other)) < _MIN_SAMPLES:
                continue
            difference = abs(float(np.median(usual) - np.median(other)))
            # The standard error of the median of normally distributed values is 1.25 times that of their mean.
            error = 1.25 * np.sqrt(usual.var() / len(usual) + other.var() / len(other))
            if difference > max(np.log(SIZE_SHIFT_FACTOR), SHIFT * error):
                shifts.append((name, split, *(float(np.exp(np.median(values))) for values in (usual, other))))
    return sorted(shifts)
