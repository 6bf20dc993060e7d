"""Detection of suspicious labels from their geometry.

A value is an outlier if it is more than a given number of robust standard deviations (median absolute deviation times
1.4826) from the median. A few wrong labels hardly change these statistics, so they do not hide themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torchvision.ops import box_iou

from ..data.dataset import Annotations
from ..formatting import plural
from .findings import Case, Finding, Place

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
_ENOUGH = 20  # boxes or images that a meaningful median needs
_LEAST_SPREAD = 0.1  # of logarithms: about 10 %; with a smaller spread, small deviations would be odd
_MOST_ROWS = 1024  # of an IoU matrix, to limit memory use
_MANY_BOXES = 4  # median count from which few boxes are suspicious


def label_findings(splits: Mapping[str, Annotations]) -> list[Finding]:
    """Find suspicious boxes and images with suspicious numbers of boxes.

    Args:
        splits: annotations by split, with the same classes in all splits.
    """
    return [finding for finding in (*_doubles(splits), *_odd_boxes(splits), *_odd_counts(splits)) if finding.cases]


# --------------------------------------------------------------------------------------------------- boxes in one place


def _doubles(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    same: list[tuple[float, Case]] = []
    other: list[tuple[float, Case]] = []
    for split, part in splits.items():
        for image, a, b, iou in double_boxes(part):
            one_class = part.labels[a] == part.labels[b]
            case = (Place(split, image, (a, b), f"IoU {iou:.2f}"),)
            (same if one_class else other).append((iou, case))
    yield Finding(
        "double box",
        "warning",
        f"{plural(len(same), 'pair')} of boxes of one class with an IoU above {SAME_BOX}: one object marked twice?",
        "Remove one of each: the object counts twice, and one of the two is missed or taken for a false detection.",
        _worst(same),
    )
    yield Finding(
        "box of two classes",
        "warning",
        f"{plural(len(other), 'pair')} of boxes of different classes with an IoU above {SAME_BOX}",
        "Decide on one class; one object with two classes teaches the detector contradictions.",
        _worst(other),
    )


def double_boxes(annotations: Annotations) -> Iterator[tuple[int, int, int, float]]:
    """Yield (image, box, later box, IoU) for pairs of boxes with an IoU above `SAME_BOX`, without crowds."""
    boxes, crowd = torch.from_numpy(annotations.boxes), torch.from_numpy(annotations.crowd)
    for image in np.flatnonzero(np.diff(annotations.offsets) > 1).tolist():
        span = annotations.span(image)
        rows = torch.nonzero(~crowd[span]).squeeze(1) + span.start
        for start in range(0, len(rows), _MOST_ROWS):
            iou = box_iou(boxes[rows[start : start + _MOST_ROWS]], boxes[rows])
            for a, b in torch.nonzero(iou > SAME_BOX).tolist():
                if a + start < b:
                    yield image, int(rows[a + start]), int(rows[b]), float(iou[a, b])


def _worst(scored: list[tuple[float, Case]]) -> list[Case]:
    return [case for _, case in sorted(scored, key=lambda item: -item[0])]


# ---------------------------------------------------------------------------------------------- boxes unlike the others


Usual = Mapping[int, tuple[tuple[float, float], tuple[float, float]]]
"""Median and robust standard deviation of log(sqrt(area)), then of log(width / height), by label."""
Judge = Callable[[Annotations], tuple[np.ndarray, Callable[[int], str]]]
"""Function from annotations to a suspicion score for every box ([B], 0 for inconspicuous boxes) and a function from the
position of a box to a note about it."""


def _odd_boxes(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    usual = _usual(splits)
    odd = _cases(splits, partial(_judge_size, usual=usual))
    yield Finding(
        "size unlike its class",
        "warning",
        f"{plural(len(odd), 'box')} far smaller or larger than the others of the class: wrong class, or a slip?",
        "Look at them, and correct the class or the box.",
        odd,
    )
    long = _cases(splits, partial(_judge_shape, usual=usual))
    yield Finding(
        "very long box",
        "warning",
        f"{plural(len(long), 'box')} at least {LONG:.0f} times as long as wide, unlike the others of the class",
        "Look at them; such a box is often a slip of the hand.",
        long,
    )
    whole = _cases(splits, _judge_share)
    yield Finding(
        "box around the whole image",
        "note",
        f"{plural(len(whole), 'box')} covering {WHOLE_IMAGE:.0%} of the image or more",
        "Look whether they mark an object, or the image as a whole; the latter do not belong here.",
        whole,
    )


def _cases(splits: Mapping[str, Annotations], judge: Judge) -> list[Case]:
    found: list[tuple[float, Case]] = []
    for split, part in splits.items():
        doubts, note = judge(part)
        image_of = part.image_of
        for i in np.flatnonzero((doubts > 0) & ~part.crowd).tolist():
            found.append((float(doubts[i]), (Place(split, int(image_of[i]), (i,), note(i)),)))
    return _worst(found)


def _judge_size(annotations: Annotations, *, usual: Usual) -> tuple[np.ndarray, Callable[[int], str]]:
    size, _ = _log_size_and_ratio(annotations.boxes)
    doubts = np.abs(_deviations(size, annotations.labels, {label: of for label, (of, _) in usual.items()}))

    def note(i: int) -> str:
        """Describe the size of a box, the usual size of its class, and the best-fitting class if there is one."""
        own, names = int(annotations.labels[i]), annotations.class_names
        others = {label: abs(size[i] - middle) / spread for label, ((middle, spread), _) in usual.items()}
        nearest = min(others, key=others.__getitem__)
        text = f"{np.exp(size[i]):.0f} pixels, {names[own]} usually {np.exp(usual[own][0][0]):.0f}"
        return f"{text}; {names[nearest]} fits" if others[nearest] < ODD_SIZE / 2 else text

    return np.where(doubts > ODD_SIZE, doubts, 0), note


def _judge_shape(annotations: Annotations, *, usual: Usual) -> tuple[np.ndarray, Callable[[int], str]]:
    _, ratio = _log_size_and_ratio(annotations.boxes)
    far = np.abs(_deviations(ratio, annotations.labels, {label: of for label, (_, of) in usual.items()})) > ODD_SIZE
    extents = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    doubts = np.where(far & (np.abs(ratio) >= np.log(LONG)), np.abs(ratio), 0)
    return doubts, lambda i: f"{extents[i, 0]:.0f} x {extents[i, 1]:.0f}"


def _judge_share(annotations: Annotations) -> tuple[np.ndarray, Callable[[int], str]]:
    size, _ = _log_size_and_ratio(annotations.boxes)
    areas = annotations.sizes.astype(np.float64).prod(axis=1)
    share = np.exp(2 * size) / areas[annotations.image_of]
    return np.where(share >= WHOLE_IMAGE, share, 0), lambda i: f"{share[i]:.0%} of the image"


def _deviations(values: np.ndarray, labels: np.ndarray, usual: Mapping[int, tuple[float, float]]) -> np.ndarray:
    """Return [B] signed distances from the median of the class in robust standard deviations; 0 in rare classes."""
    deviations = np.zeros(len(values))
    for label, (middle, spread) in usual.items():
        own = labels == label
        deviations[own] = (values[own] - middle) / spread
    return deviations


def _log_size_and_ratio(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute log(sqrt(area)) and log(width / height), both [B], of boxes [B, 4]."""
    width, height = np.log((boxes[:, 2:] - boxes[:, :2]).astype(np.float64)).T
    return (width + height) / 2, width - height


def _usual(splits: Mapping[str, Annotations]) -> Usual:
    """Compute the usual size and shape of every class with enough boxes."""
    if not splits:
        return {}
    kept = [~annotations.crowd for annotations in splits.values()]
    labels = np.concatenate([a.labels[keep] for a, keep in zip(splits.values(), kept, strict=True)])
    boxes = np.concatenate([a.boxes[keep] for a, keep in zip(splits.values(), kept, strict=True)])
    size, ratio = _log_size_and_ratio(boxes)
    frequent = np.flatnonzero(np.bincount(labels) >= _ENOUGH).tolist()
    return {label: (_spread(size[labels == label]), _spread(ratio[labels == label])) for label in frequent}


def _spread(values: np.ndarray, least: float = _LEAST_SPREAD) -> tuple[float, float]:
    """Return the median and the robust standard deviation of values; the latter is at least `least`."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), least)


# --------------------------------------------------------------------------------------------- images unlike the others


def _odd_counts(splits: Mapping[str, Annotations]) -> Iterator[Finding]:
    counts = {split: np.diff(annotations.offsets) for split, annotations in splits.items()}
    everywhere = np.concatenate(list(counts.values())) if counts else np.zeros(0)
    few: list[tuple[float, Case]] = []
    many: list[tuple[float, Case]] = []
    usual = 0
    if len(everywhere) >= _ENOUGH:
        usual = int(np.median(everywhere))
        # 0.5: the standard deviation of the square root of Poisson counts.
        middle, spread = _spread(np.sqrt(everywhere), least=0.5)
        for split, numbers in counts.items():
            deviation = (np.sqrt(numbers) - middle) / spread
            for image in np.flatnonzero(np.abs(deviation) > ODD_COUNT).tolist():
                chosen = many if deviation[image] > 0 else few
                case = (Place(split, image, (), plural(int(numbers[image]), "box")),)
                chosen.append((abs(float(deviation[image])), case))
    yield Finding(
        "image with few boxes",
        "note",
        f"{plural(len(few), 'image')} with far fewer boxes than usual ({usual}): objects left unmarked?",
        "Look at them: an object without a box teaches the detector not to find it.",
        _worst(few) if usual >= _MANY_BOXES else [],
    )
    yield Finding(
        "image with many boxes",
        "note",
        f"{plural(len(many), 'image')} with far more boxes than usual ({usual})",
        "Look whether the boxes are right. Where they are, a detector that returns more than model.max_detections"
        " objects of an image leaves the others out.",
        _worst(many),
    )
