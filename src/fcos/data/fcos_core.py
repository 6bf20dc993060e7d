"""The original FCOS's rules for reading annotations (`data.convention=fcos_core`), applied on top of our readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from . import coco, voc
from .source import Problem, Source, SplitFiles, select_boxes, select_images

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of Pascal VOC in the original's order."""
_MIN_KEYPOINTS = 10  # of an image
_EMPTY_SIDE = 1 + 1e-6  # the sides of boxes are differences, with rounding errors


def read_coco(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read a COCO file; every category is a class."""
    return coco.read(files, class_names, all_categories=True)


def select_trained_coco(source: Source) -> Source:
    """Drop images without boxes, also those whose boxes are all at most one pixel wide or high.

    Images that only have crowds stay. If keypoints are read, images with fewer than ten visible ones are dropped, too.
    """
    with np.errstate(invalid="ignore"):  # infinite values are reported later
        has_area = ~(source.boxes[:, 2:] - source.boxes[:, :2] <= _EMPTY_SIDE).any(axis=1)
    keep = np.bincount(source.image_of[has_area], minlength=len(source.file_names)) > 0
    selected = _select_images(source, keep, kind="image without boxes", reason="have no boxes")
    if selected.keypoints is None:
        return selected
    num_visible = (selected.keypoints.values[..., 2] > 0).sum(axis=1)
    per_image = np.bincount(selected.image_of, weights=num_visible, minlength=len(selected.file_names))
    reason = f"have fewer than {_MIN_KEYPOINTS} visible keypoints"
    return _select_images(selected, per_image >= _MIN_KEYPOINTS, kind="image with few keypoints", reason=reason)


def read_voc(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the XML files of a split, with boxes that include their last pixel and start at 1, and lower-case names.

    The classes are the 20 of Pascal VOC, or those of the data if it has any other class.
    """
    source = voc.read(files, None)
    names = [name.lower() for name in source.class_names]
    if class_names is None:
        class_names = VOC_CLASSES if set(names) <= set(VOC_CLASSES) else sorted(set(names))
    classes = {name.lower(): name for name in class_names}
    new_names = [*class_names, *(name for name in dict.fromkeys(names) if name not in classes)]  # others are reported
    labels = np.array([new_names.index(classes.get(name, name)) for name in names], dtype=np.int64)
    boxes = source.boxes.copy()
    boxes[:, :2] -= 1  # the last pixel stays: it is included, and also one too large
    return replace(
        source,
        boxes=boxes,
        labels=labels[source.labels],
        class_names=new_names,
        category_ids=list(range(1, len(new_names) + 1)),
    )


def select_trained_voc(source: Source) -> Source:
    """Drop difficult objects: they are background in training, and ignore regions otherwise."""
    return select_boxes(source, ~source.crowd)


class Convention(NamedTuple):
    """Rules of the original for one format.

    Attributes:
        read: function (files, class names in label order, or None) -> Source.
        select_trained: function from a Source to the images and boxes of it that are trained on.
    """

    read: Callable[[SplitFiles, Sequence[str] | None], Source]
    select_trained: Callable[[Source], Source]


CONVENTIONS: dict[str, Convention] = {
    "coco": Convention(read_coco, select_trained_coco),
    "voc": Convention(read_voc, select_trained_voc),
}
"""Rules for the formats that the original supports."""


def _select_images(source: Source, keep: np.ndarray, *, kind: str, reason: str) -> Source:
    """Return a source with the images in the mask `keep` [I] only, and a warning with the number of the others."""
    num_dropped = int((~keep).sum())
    if not num_dropped:
        return source
    message = f"{num_dropped} of {len(keep)} images {reason}; the original does not train on them"
    problem = Problem(kind, str(source.annotation_files[0]), "", message, "warning")
    return replace(select_images(source, keep), problems=[*source.problems, problem])
