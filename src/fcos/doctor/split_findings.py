"""Findings about splits: missing or small splits, rare classes, boxes beyond the images, and different splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..formatting import join_some, plural
from .findings import Finding, Report
from .statistics import SplitCounts, class_shifts, size_shifts

FEW_BOXES = 20
"""Number of boxes of a class below which it is reported: a share of 20 boxes, such as the recall, has a standard error
of up to 0.11."""
FEW_IMAGES = 10
"""Number of images with boxes of val or test below which the split is reported."""
MANY_CLIPPED = 0.1
"""Share of boxes beyond their images above which the boxes of a split are doubted."""


def split_findings(report: Report, resized: Callable[[int, int], tuple[int, int]]) -> list[Finding]:
    """Find weaknesses of the splits.

    Args:
        report: report with problems, annotations and counts of the splits.
        resized: function from the height and width of an image to its (height, width) in training.
    """
    return [
        *_find_missing_val(report),
        *_find_clipped_boxes(report),
        *(finding for split, counts in report.counts.items() for finding in _find_rare_classes(split, counts, report)),
        *_find_shifts(report, resized),
    ]


def _find_missing_val(report: Report) -> Iterator[Finding]:
    if "train" in report.splits and "val" not in report.splits and "val" not in report.problems:
        yield Finding(
            "missing val split",
            "warning",
            "no val split: a training on this data has no AP, cannot select the best weights or stop early, and fits no"
            " score thresholds",
            "Train with data.val_fraction=0.2, or divide the images with `fcos split`. Images of scenes that train does"
            " not show are the best val split.",
        )


def _find_clipped_boxes(report: Report) -> Iterator[Finding]:
    for split, problems in report.problems.items():
        clipped = sum(problem.kind == "clipped box" for problem in problems)
        total = len(report.splits[split].boxes) if split in report.splits else 0
        if clipped > MANY_CLIPPED * total:
            yield Finding(
                "boxes beyond the images",
                "warning",
                f"{clipped} of {total} boxes in {split} extend beyond their images",
                "Check the box format (COCO: x, y, width, height in pixels; Pascal VOC: x1, y1, x2, y2; YOLO: centre"
                " and size as fractions of the image), and that the boxes were made for images of this size.",
            )


def _find_rare_classes(split: str, counts: SplitCounts, report: Report) -> Iterator[Finding]:
    absent = [name for name, count in counts.per_class.items() if not count]
    few = [name for name, count in counts.per_class.items() if 0 < count < FEW_BOXES]
    if absent:
        consequence = (
            "cannot be learned"
            if split == "train"
            else "is not evaluated: AP is the mean of the other classes, and the class gets the default score threshold"
        )
        yield Finding(
            f"class without boxes in {split}",
            "note" if split == "test" else "warning",
            f"{split} has no boxes of {join_some(absent)}",
            f"A class without boxes in {split} {consequence}. Add boxes, or remove the class.",
            classes=absent,
        )
    images = counts.images - counts.images_without_boxes
    if split != "train" and counts.images and (images < FEW_IMAGES or (few and len(few) == len(counts.per_class))):
        yield Finding(
            f"small {split} split",
            "warning",
            f"{split} has {plural(images, 'image')} with boxes and {plural(counts.boxes - counts.crowd, 'box')}: too"
            " few for a reliable AP and for score thresholds",
            f"Move images of other scenes to {split}, until every class has at least {FEW_BOXES} boxes.",
        )
    elif few:
        texts = [f"{name} ({counts.per_class[name]})" for name in sorted(few, key=counts.per_class.__getitem__)]
        consequence = (
            "is hardly learned" if split == "train" else "has an unreliable AP and, if it is in val, score threshold"
        )
        yield Finding(
            f"class with few boxes in {split}",
            "warning" if split == "train" else "note",
            f"{split} has fewer than {FEW_BOXES} boxes of {join_some(texts)}",
            f"A class with few boxes in {split} {consequence}. Add boxes, or merge similar classes.",
            classes=few,
        )


def _find_shifts(report: Report, resized: Callable[[int, int], tuple[int, int]]) -> Iterator[Finding]:
    shifts = class_shifts(report.counts)
    if shifts:
        texts = [
            f"{name}: {share_in_train:.1%} of the boxes in train, {share_in_split:.1%} in {split}"
            for name, split, share_in_train, share_in_split in shifts
        ]
        yield Finding(
            "different class frequencies",
            "warning",
            join_some(texts, "; "),
            "Split the data again, so that classes are equally frequent in all splits and the metrics are"
            " representative: join train and val, then set data.val_fraction=0.2 or use `fcos split`.",
            classes=list(dict.fromkeys(name for name, *_ in shifts)),
        )
    shifts = size_shifts(report.splits, resized)
    if shifts:
        texts = [
            f"{name}: {size_in_train:.0f} pixels in train, {size_in_split:.0f} in {split}"
            for name, split, size_in_train, size_in_split in shifts
        ]
        yield Finding(
            "different box sizes",
            "warning",
            f"median box sizes (square root of the area after resizing) differ: {join_some(texts, '; ')}",
            "Check that the annotations of all splits have the same box format. If they do, split the data again, so"
            " that the metrics are representative.",
            classes=list(dict.fromkeys(name for name, *_ in shifts)),
        )
