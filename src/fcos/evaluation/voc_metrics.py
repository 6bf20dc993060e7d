"""Average precision as in the Pascal VOC challenges.

Shape letters: M objects and D detections of one image and class, A detections of all images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..boxes import iou

if TYPE_CHECKING:
    from ..data.dataset import Annotations

VOC_METRICS = ("AP50_voc07", "AP50_voc10")
"""AP at IoU 0.5: mean precision at 11 recalls (VOC2007), and area below the curve of precision and recall (VOC2010)."""


class ClassInImage(NamedTuple):
    """Objects and detections of one class in one image.

    Attributes:
        boxes: float32 [M, 4], continuous XYXY of the objects.
        is_difficult: bool [M], objects that count neither as found nor as missed.
        detected: float32 [D, 4], continuous XYXY of the detections.
        scores: float [D].
    """

    boxes: np.ndarray
    is_difficult: np.ndarray
    detected: np.ndarray
    scores: np.ndarray


def voc_metrics(
    annotations: Annotations, detections: list[dict[str, Any]], *, extra_pixel: bool = False
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Compute the metrics of `VOC_METRICS`, overall and by class name; NaN for classes without objects.

    Args:
        annotations: ground truth; crowds are difficult objects.
        detections: detections in the COCO result format.
        extra_pixel: enlarge all boxes at the right and the bottom by a pixel, as the original does.
    """
    end = np.array([0, 0, 1, 1], dtype=np.float32) * extra_pixel
    boxes = np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    position_of = {image: i for i, image in enumerate(annotations.image_ids.tolist())}
    images = np.array([position_of[d["image_id"]] for d in detections], dtype=np.int64)
    categories = np.array([d["category_id"] for d in detections], dtype=np.int64)
    scores = np.array([d["score"] for d in detections], dtype=np.float64)
    per_class = {}
    for label, (name, category) in enumerate(zip(annotations.class_names, annotations.category_ids, strict=True)):
        objects, found = np.flatnonzero(annotations.labels == label), np.flatnonzero(categories == category)
        objects_of, found_of = annotations.image_of[objects], images[found]
        per_class[name] = average_precisions(
            ClassInImage(annotations.boxes[o] + end, annotations.crowd[o], boxes[f] + end, scores[f])
            for image in np.union1d(objects_of, found_of)
            for o, f in [(objects[objects_of == image], found[found_of == image])]
        )
    defined = {metric: [values[metric] for values in per_class.values()] for metric in VOC_METRICS}
    overall = {
        metric: float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        for metric, values in defined.items()
    }
    return overall, per_class


def average_precisions(images: Iterable[ClassInImage], *, iou_threshold: float = 0.5) -> dict[str, float]:
    """Compute the metrics of `VOC_METRICS` for one class; NaN without objects.

    Args:
        images: all images with objects or detections of the class.
        iou_threshold: smallest IoU of a detection and its object.

    Source: the challenges' development kit. A detection belongs to the object with the highest IoU, and is wrong if a
    detection with a higher score has the same one.
    """
    scores, states, num_objects = [np.zeros(0)], [np.zeros(0, dtype=np.int64)], 0
    for image in images:
        order = np.argsort(-image.scores, kind="stable")
        scores.append(image.scores[order])
        states.append(_match(image.boxes, image.is_difficult, image.detected[order], iou_threshold))
        num_objects += int((~image.is_difficult).sum())
    if not num_objects:
        return dict.fromkeys(VOC_METRICS, float("nan"))
    ranked = np.concatenate(states)[np.argsort(-np.concatenate(scores), kind="stable")]
    ranked = ranked[ranked >= 0]
    correct = np.cumsum(ranked == 1)
    recall, precision = correct / num_objects, correct / np.arange(1, len(ranked) + 1)
    points = [precision[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # precision at this recall or a higher one
    steps = np.diff(recall, prepend=0.0)
    return dict(zip(VOC_METRICS, (float(np.mean(points)), float((steps * highest).sum())), strict=True))


def _match(boxes: np.ndarray, is_difficult: np.ndarray, detected: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return the state of every detection [D], best first: 1 correct, 0 wrong, -1 of a difficult object."""
    states = np.zeros(len(detected), dtype=np.int64)
    if not len(boxes) or not len(detected):
        return states
    overlaps = iou(torch.from_numpy(detected), torch.from_numpy(boxes)).numpy()
    is_taken = np.zeros(len(boxes), dtype=bool)
    for i, nearest in enumerate(overlaps.argmax(axis=1)):
        if overlaps[i, nearest] < iou_threshold:
            continue
        states[i] = -1 if is_difficult[nearest] else int(not is_taken[nearest])
        is_taken[nearest] = True
    return states
