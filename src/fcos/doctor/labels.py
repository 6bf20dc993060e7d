"""Detection of suspicious labels from their geometry.

A value is an outlier if it is more than a given number of robust standard deviations (median absolute deviation times
1.4826) from the median. A few wrong labels hardly change these statistics, so they do not hide themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from ..data.dataset import Annotations
from ..formatting import plural
from ..masks import gather_groups
from .findings import Case, Finding, Place, worst_first
from .pieces import split_evenly

SAME_BOX = 0.9
"""IoU above which two boxes are considered to be of the same object."""
ODD_SIZE = 6.0
"""Robust standard deviations of log(sqrt(area)) from the median of the class above which a size is odd."""
ODD_COUNT = 4.0
"""Robust standard deviations of sqrt(number of boxes of an image) from the median above which a count is odd; the root
stabilises the variance of counts."""
WHOLE_IMAGE = 0.95
"""Share of the image area from which a box covers the whole image."""
LONG = 10.0
"""Ratio of longer to shorter side from which a box is very long, if that is unusual in its class."""
_MIN_SAMPLES = 20  # boxes or images that a meaningful median needs
_MIN_SPREAD = 0.1  # of logarithms: about 10 %; with a smaller spread, small deviations would be odd
_MAX_BOXES = 10_000  # boxes of one or more images at once, and
_MAX_PAIRS = 1_000_000  # pairs of boxes compared at once, to limit memory use
_SLACK = 1.01  # rounding of coordinates
_LAST = 2**32 - 1  # largest position of a box
_MANY_BOXES = 4  # median count from which few boxes are suspicious


def label_findings(splits: Mapping[str, Annotations]) -> list[Finding]:
    """Find suspicious boxes and images with suspicious numbers of boxes.

    Args:
        splits: annotations by split, with the same classes in all splits.
    """
    return [
        finding
        for finding in (*_find_doubles(splits), *_find_odd_boxes(splits), *_find_odd_counts(splits))
        if finding.cases
    ]


# --------------------------------------------------------------------------------------------------- boxes in one place


class DoubleBoxes(NamedTuple):
    """Boxes with the most similar earlier box of their image, if the IoU is above `SAME_BOX`; one row per later box.

    Attributes:
        earlier: int64 [P], positions of the earlier boxes in the annotations.
        later: int64 [P], positions of the later boxes in the annotations.
        iou: float32 [P].
    """

    earlier: np.ndarray
    later: np.ndarray
    iou: np.ndarray

    def cases(self, split: str, image_of: np.ndarray) -> list[tuple[float, Case]]:
        """Return each pair as a case, with its IoU."""
        images = image_of[self.later].tolist()
        columns = (images, self.earlier.tolist(), self.later.tolist(), self.iou.tolist())
        return [(iou, (Place(split, i, (a, b), f"IoU {iou:.2f}"),)) for i, a, b, iou in zip(*columns, strict=True)]


def _find_doubles(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    same_class: list[tuple[float, Case]] = []
    other_class: list[tuple[float, Case]] = []
    for split, split_annotations in splits.items():
        of_same, of_other = double_boxes(split_annotations)
        same_class += of_same.cases(split, split_annotations.image_of)
        other_class += of_other.cases(split, split_annotations.image_of)
    yield Finding(
        "duplicate box",
        "warning",
        f"{plural(len(same_class), 'pair')} of boxes of the same class with an IoU above {SAME_BOX}: annotated twice?",
        "Remove one box of each pair. Otherwise the object counts twice, and the evaluation reports a missed object or"
        " a false detection.",
        worst_first(same_class),
    )
    yield Finding(
        "box with two classes",
        "warning",
        f"{plural(len(other_class), 'pair')} of boxes of different classes with an IoU above {SAME_BOX}",
        "Keep one class per object: two classes for the same object are contradictory training targets.",
        worst_first(other_class),
    )


def double_boxes(annotations: Annotations, images: np.ndarray | None = None) -> tuple[DoubleBoxes, DoubleBoxes]:
    """Find boxes that repeat an earlier box of the same class, and of another class, without crowds.

    Many boxes on one place have a number of pairs that grows with its square; only the most similar earlier box of each
    box is returned.

    Args:
        annotations: annotations of a split.
        images: positions of the images to search; None: all.
    """
    images = np.arange(len(annotations)) if images is None else images
    # The best earlier box of the same class, and of another one, as a number: its IoU, then the smallest position.
    best, image_of = np.zeros((2, len(annotations.boxes)), dtype=np.uint64), annotations.image_of
    counts = np.diff(annotations.offsets)[images]
    for piece in split_evenly(counts, _MAX_BOXES):
        positions, _ = gather_groups(annotations.offsets, images[piece])
        positions = positions[~annotations.crowd[positions]]
        for first, second, iou in _similar_pairs(annotations.boxes[positions], image_of[positions]):
            earlier, later = positions[np.minimum(first, second)], positions[np.maximum(first, second)]
            key = (iou.view(np.uint32).astype(np.uint64) << 32) + (_LAST - earlier).astype(np.uint64)
            is_same = annotations.labels[earlier] == annotations.labels[later]
            for keys, group in zip(best, (is_same, ~is_same), strict=True):
                np.maximum.at(keys, later[group], key[group])
    of_same, of_other = (_decode(keys) for keys in best)
    return of_same, of_other


def _decode(keys: np.ndarray) -> DoubleBoxes:
    later = np.flatnonzero(keys)
    earlier = _LAST - (keys[later] & np.uint64(_LAST)).astype(np.int64)
    return DoubleBoxes(earlier, later, (keys[later] >> 32).astype(np.uint32).view(np.float32))


def _similar_pairs(boxes: np.ndarray, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield positions in `boxes` [M, 4] of the pairs with an IoU above `SAME_BOX`, each pair once, and the IoUs [P].

    Only boxes of the same image are compared; `images` [M] is the image of each box.

    With such an IoU, the left sides of two boxes are at most (1 - `SAME_BOX`) of the left box's width apart, and their
    upper sides likewise. Pairs that are close along the axis with fewer such pairs are compared.
    """
    starts, ends = np.ascontiguousarray(boxes.T).reshape(2, 2, -1)  # [axis, M]
    reaches = (1 - SAME_BOX) * _SLACK * (ends - starts)
    areas = (ends - starts).prod(axis=0)
    # The images side by side, too far apart for pairs of boxes of two images.
    shifts = images * (2.0 * float(boxes.max(initial=0)) + 1)
    windows = []
    for axis in (0, 1):
        places = starts[axis] + shifts
        order = np.argsort(places, kind="stable")
        last = np.searchsorted(places[order], (places + reaches[axis])[order], side="right")
        windows.append((order, last - np.arange(1, len(boxes) + 1), 1 - axis))
    order, counts, other = min(windows, key=lambda window: int(window[1].sum()))
    for piece in split_evenly(counts, _MAX_PAIRS):
        row = np.repeat(np.arange(piece.start, piece.stop), counts[piece])
        step = np.arange(len(row)) - np.repeat(np.cumsum(counts[piece]) - counts[piece], counts[piece])
        first, second = order[row], order[row + 1 + step]
        distance = np.abs(starts[other][first] - starts[other][second])
        is_near = distance <= np.maximum(reaches[other][first], reaches[other][second])
        first, second = first[is_near], second[is_near]
        x, y = (
            np.minimum(end[first], end[second]) - np.maximum(s[first], s[second])
            for s, end in zip(starts, ends, strict=True)
        )
        intersection = x.clip(min=0) * y.clip(min=0)
        iou = intersection / (areas[first] + areas[second] - intersection)
        is_similar = iou > SAME_BOX
        yield first[is_similar], second[is_similar], iou[is_similar]


# ---------------------------------------------------------------------------------------------- boxes unlike the others


class ClassStatistics(NamedTuple):
    """Median and robust standard deviation of the boxes of a class.

    Attributes:
        size: of log(sqrt(area)), pixels.
        share: of log(sqrt(area / area of the image)).
        ratio: of log(width / height).
    """

    size: tuple[float, float]
    share: tuple[float, float]
    ratio: tuple[float, float]


Judge = Callable[[Annotations], tuple[np.ndarray, Callable[[int], str]]]
"""Function from annotations to a suspicion score for every box ([B], 0 for inconspicuous boxes) and a function from the
position of a box to a note about it."""


def _find_odd_boxes(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    statistics = _class_statistics(splits)
    odd = _find_cases(splits, partial(_judge_size, statistics=statistics))
    yield Finding(
        "unusual size for its class",
        "warning",
        f"{plural(len(odd), 'box')} far smaller or larger than other boxes of the class, unlike the rest of the image:"
        " wrong class or wrong box?",
        "Check these boxes, and correct the class or the box.",
        odd,
    )
    long = _find_cases(splits, partial(_judge_shape, statistics=statistics))
    yield Finding(
        "extreme aspect ratio",
        "warning",
        f"{plural(len(long), 'box')} with an aspect ratio of at least {LONG:.0f}:1, which is unusual for the class",
        "Check these boxes: they are often annotation errors.",
        long,
    )
    whole = _find_cases(splits, _judge_share)
    yield Finding(
        "box around the whole image",
        "note",
        f"{plural(len(whole), 'box')} covering at least {WHOLE_IMAGE:.0%} of the image",
        "Check whether each box marks an object or labels the image as a whole. Remove boxes that label a whole image.",
        whole,
    )


def _find_cases(splits: Mapping[str, Annotations], judge: Judge) -> list[Case]:
    scored: list[tuple[float, Case]] = []
    for split, split_annotations in splits.items():
        suspicion, note = judge(split_annotations)
        image_of = split_annotations.image_of
        for i in np.flatnonzero((suspicion > 0) & ~split_annotations.crowd).tolist():
            scored.append((float(suspicion[i]), (Place(split, int(image_of[i]), (i,), note(i)),)))
    return worst_first(scored)


def _judge_size(
    annotations: Annotations, *, statistics: Mapping[int, ClassStatistics]
) -> tuple[np.ndarray, Callable[[int], str]]:
    size, share, _ = _log_measures(annotations)
    in_pixels = _deviations(size, annotations.labels, {label: s.size for label, s in statistics.items()})
    in_shares = _deviations(share, annotations.labels, {label: s.share for label, s in statistics.items()})
    # Both must be odd: in a larger image, boxes are larger in pixels; in a panorama, they are smaller shares.
    deviations = np.minimum(np.abs(in_pixels), np.abs(in_shares))
    image_of = annotations.image_of
    has_statistics = np.isin(annotations.labels, list(statistics)) & ~annotations.crowd
    for i in np.flatnonzero(deviations > ODD_SIZE).tolist():
        # From far away, all objects of an image are small.
        span = annotations.span(int(image_of[i]))
        rows = np.arange(span.start, span.stop)
        others = rows[has_statistics[rows] & (rows != i)]
        if len(others):
            offset = in_pixels[i] - np.median(in_pixels[others])
            deviations[i] = min(deviations[i], abs(float(offset)))

    def note(i: int) -> str:
        """Describe the size of a box, the usual size of its class, and the best-fitting class if there is one."""
        label_of_box, names = int(annotations.labels[i]), annotations.class_names
        class_deviations = {label: abs(size[i] - s.size[0]) / s.size[1] for label, s in statistics.items()}
        nearest = min(class_deviations, key=class_deviations.__getitem__)
        usual_size = np.exp(statistics[label_of_box].size[0])
        text = f"{np.exp(size[i]):.0f} pixels, median of {names[label_of_box]}: {usual_size:.0f}"
        return f"{text}; size fits {names[nearest]}" if class_deviations[nearest] < ODD_SIZE / 2 else text

    return np.where(deviations > ODD_SIZE, deviations, 0), note


def _judge_shape(
    annotations: Annotations, *, statistics: Mapping[int, ClassStatistics]
) -> tuple[np.ndarray, Callable[[int], str]]:
    _, _, ratio = _log_measures(annotations)
    deviations = _deviations(ratio, annotations.labels, {label: s.ratio for label, s in statistics.items()})
    extents = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    is_odd = (np.abs(deviations) > ODD_SIZE) & (np.abs(ratio) >= np.log(LONG))
    return np.where(is_odd, np.abs(ratio), 0), lambda i: f"{extents[i, 0]:.0f} x {extents[i, 1]:.0f}"


def _judge_share(annotations: Annotations) -> tuple[np.ndarray, Callable[[int], str]]:
    share = np.exp(2 * _log_measures(annotations)[1])
    return np.where(share >= WHOLE_IMAGE, share, 0), lambda i: f"{share[i]:.0%} of the image"


def _deviations(values: np.ndarray, labels: np.ndarray, statistics: Mapping[int, tuple[float, float]]) -> np.ndarray:
    """Return [B] signed distances from the median of the class in robust standard deviations; 0 in rare classes."""
    deviations = np.zeros(len(values))
    for label, (median, spread) in statistics.items():
        in_class = labels == label
        deviations[in_class] = (values[in_class] - median) / spread
    return deviations


def _log_measures(annotations: Annotations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the logarithms of sqrt(area), of sqrt(area / area of the image) and of width / height, each [B]."""
    boxes = annotations.boxes
    width, height = np.log((boxes[:, 2:] - boxes[:, :2]).astype(np.float64)).T
    size = (width + height) / 2
    image_size = np.log(annotations.sizes.astype(np.float64)).mean(axis=1)
    return size, size - image_size[annotations.image_of], width - height


def _class_statistics(splits: Mapping[str, Annotations]) -> dict[int, ClassStatistics]:
    """Compute the usual size and shape of every class with enough boxes."""
    if not splits:
        return {}
    masks = [~annotations.crowd for annotations in splits.values()]
    labels = np.concatenate([a.labels[mask] for a, mask in zip(splits.values(), masks, strict=True)])
    measures = np.concatenate(
        [np.stack(_log_measures(a), axis=1)[mask] for a, mask in zip(splits.values(), masks, strict=True)]
    )
    frequent = np.flatnonzero(np.bincount(labels) >= _MIN_SAMPLES).tolist()
    return {
        label: ClassStatistics(*(_median_and_spread(column) for column in measures[labels == label].T))
        for label in frequent
    }


def _median_and_spread(values: np.ndarray, least: float = _MIN_SPREAD) -> tuple[float, float]:
    """Return the median and the robust standard deviation of values; the latter is at least `least`."""
    median = float(np.median(values))
    return median, max(1.4826 * float(np.median(np.abs(values - median))), least)


# --------------------------------------------------------------------------------------------- images unlike the others


def _find_odd_counts(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    counts = {split: np.diff(annotations.offsets) for split, annotations in splits.items()}
    all_counts = np.concatenate(list(counts.values())) if counts else np.zeros(0)
    few: list[tuple[float, Case]] = []
    many: list[tuple[float, Case]] = []
    usual_count = 0
    if len(all_counts) >= _MIN_SAMPLES:
        usual_count = int(np.median(all_counts))
        # 0.5: the standard deviation of the square root of Poisson counts.
        median, spread = _median_and_spread(np.sqrt(all_counts), least=0.5)
        for split, numbers in counts.items():
            deviation = (np.sqrt(numbers) - median) / spread
            for image in np.flatnonzero(np.abs(deviation) > ODD_COUNT).tolist():
                chosen = many if deviation[image] > 0 else few
                case = (Place(split, image, (), plural(int(numbers[image]), "box")),)
                chosen.append((abs(float(deviation[image])), case))
    yield Finding(
        "image with few boxes",
        "note",
        f"{plural(len(few), 'image')} with far fewer boxes than usual (median {usual_count}): missing annotations?",
        "Check these images: an object without a box is learned as background.",
        worst_first(few) if usual_count >= _MANY_BOXES else [],
    )
    yield Finding(
        "image with many boxes",
        "note",
        f"{plural(len(many), 'image')} with far more boxes than usual (median {usual_count})",
        "Check these boxes.",
        worst_first(many),
    )
