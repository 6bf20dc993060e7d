"""Reasons why objects were missed, from the predictions of the head and their path through post-processing.

An object is missed if evaluation (IoU 0.5, same class) matches no shown detection to it. A detection is shown if it
scores at least the threshold of its class.

Shape letters: R locations over all levels, K classes, M objects, P predictions above the score threshold, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..boxes import iou
from ..evaluation.coco_metrics import compare, to_coco_results
from ..models.postprocess import FCOSPostprocess
from ..structures import Instances, Objects
from .trace import Stage, Trace

Reason = Literal[
    "suppressed",
    "limit of detections",
    "limit of candidates",
    "matched to another object",
    "no location",
    "wrong class",
    "poor localization",
    "low score",
]
"""Reason why an object was missed.

A box fits an object if their IoU is at least 0.5. The first reason that applies is given. The first three: a box of its
class that fits and reaches the threshold was suppressed, or is beyond `max_detections` or `pre_nms_top_k`.
`matched to another object`: the only such box is the detection of another object. `no location`: training assigns no
location to the object at this image size. `wrong class`: a shown detection of another class fits. `poor localization`:
the boxes of its class that reach the threshold do not fit. `low score`: no score reaches the threshold.
"""
FITTING_IOU = 0.5
"""Smallest IoU of a detection with its object in the matching."""
_NEAR_IOU = 0.1  # smallest IoU of an inaccurate detection with its object, as in TIDE's localization error


class Miss(NamedTuple):
    """Missed object.

    Attributes:
        index: position of the object.
        reason: reason why it was missed.
        text: explanation in one sentence.
        location: position of the location, among those of all levels, whose prediction the text describes; -1: none.
        box: box of that prediction, XYXY in pixels of the original image; None without one.
        other: position in the trace of the prediction that suppressed, replaced or took the object; -1: none.
    """

    index: int
    reason: Reason
    text: str
    location: int = -1
    box: list[float] | None = None
    other: int = -1


@dataclass(frozen=True, eq=False)
class Scene:
    """Predictions and objects of one image, with boxes in pixels of the original image.

    Attributes:
        trace: predictions above the score threshold.
        scores: [R, K] scores of all locations and classes; 0 where locations may not detect.
        boxes: [R, 4] boxes of all locations.
        strides: [R] strides of their levels.
        thresholds: [K] score thresholds of shown detections.
        objects: M objects.
        assigned: [R] object that training assigns to the location; -1: none.
        obstacles: M reasons why training assigns no location to the object; empty texts for those with a location.
        class_names: K names.
        options: options of detection.
    """

    trace: Trace
    scores: Tensor
    boxes: Tensor
    strides: Tensor
    thresholds: Tensor
    objects: Objects
    assigned: Tensor
    obstacles: Sequence[str]
    class_names: Sequence[str]
    options: FCOSPostprocess


def match_detections(objects: Objects, detections: Instances, *, max_detections: int) -> list[int]:
    """Match detections to objects as evaluation does, at IoU 0.5 and from the highest score down.

    Args:
        objects: M objects in pixels of the original image.
        detections: detections of the same image.
        max_detections: limit of the detector, see `coco_metrics`.

    Returns:
        Position of the detection of each object; -1: none, or a crowd.
    """
    height, width = detections.size
    rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.is_crowd.tolist(), strict=True)
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(is_crowd),
        }
        for number, ((x1, y1, x2, y2), label, is_crowd) in enumerate(rows, start=1)
    ]
    num_labels = max([*objects.labels.tolist(), *detections.labels.tolist()], default=0) + 1
    truth = {
        "images": [{"id": 1, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(num_labels)],
    }
    results = to_coco_results(detections, image_id=1, category_ids=range(num_labels))
    matches = compare(truth, results, max_detections=max_detections).image_diagnostics(iou_thr=FITTING_IOU)["gt_match"]
    is_crowd = objects.is_crowd.tolist()
    return [-1 if is_crowd[i] else matches.get(i + 1, 0) - 1 for i in range(len(objects))]


def explain_misses(scene: Scene, detection_of: Sequence[int]) -> list[Miss]:
    """Explain why objects were missed.

    Args:
        scene: predictions and objects of the image.
        detection_of: position of the detection of each object, see `match_detections`.
    """
    trace = scene.trace
    matched = {i: int(trace.detections[d]) for i, d in enumerate(detection_of) if d >= 0}
    is_shown = trace.scores >= scene.thresholds[trace.labels]
    missed = [
        i
        for i in range(len(scene.objects))
        if not scene.objects.is_crowd[i] and not (i in matched and is_shown[matched[i]])
    ]
    return [_explain_miss(scene, i, {p: j for j, p in matched.items() if j != i}) for i in missed]


def _explain_miss(scene: Scene, index: int, taken: dict[int, int]) -> Miss:
    """Explain why an object was missed; `taken` maps the detections of other objects to these objects."""
    trace, label = scene.trace, int(scene.objects.labels[index])
    overlap = iou(trace.boxes, scene.objects.boxes[index : index + 1])[:, 0]  # [P]
    is_shown = trace.scores >= scene.thresholds[trace.labels]
    is_detected = trace.stages == Stage.DETECTED
    is_free = torch.ones_like(is_shown)
    is_free[list(taken)] = False
    in_class = trace.labels == label

    strong = in_class & is_shown & (overlap >= FITTING_IOU)
    lost = _best(strong & ~is_detected & (trace.stages != Stage.EMPTY), trace.stages + trace.scores)
    if lost >= 0:
        return _explain_loss(scene, index, lost, taken)
    shared = _best(strong & ~is_free, overlap)
    if shared >= 0:
        text = f"the only box of its class that fits is the detection of another object, {_name(scene, shared)}"
        return _miss(scene, index, "matched to another object", text, shared, other=shared)
    if scene.obstacles[index]:
        return Miss(index, "no location", f"training assigns no location to it: {scene.obstacles[index]}")
    mistaken = _best(~in_class & is_shown & is_detected & is_free & (overlap >= FITTING_IOU), trace.scores)
    if mistaken >= 0:
        score = float(scene.scores[trace.locations[mistaken], label])
        text = (
            f"detected as {_name(scene, mistaken)} (IoU {float(overlap[mistaken]):.2f}); its own class scores"
            f" {score:.2f} there"
        )
        return _miss(scene, index, "wrong class", text, mistaken, other=mistaken)
    is_own = scene.assigned[trace.locations] == index
    near = in_class & is_shown & (is_own | (is_detected & is_free & (overlap >= _NEAR_IOU)))
    closest = _best(near, overlap)
    if closest >= 0:
        text = (
            f"the best box of its class, with score {float(trace.scores[closest]):.2f}, has IoU"
            f" {float(overlap[closest]):.2f}; a match needs {FITTING_IOU:g}"
        )
        return _miss(scene, index, "poor localization", text, closest)
    return _explain_low_score(scene, index)


def _explain_loss(scene: Scene, index: int, lost: int, taken: dict[int, int]) -> Miss:
    """Explain why a box that fits, and reaches the threshold, is not a detection."""
    trace, options = scene.trace, scene.options
    stage, score = Stage(int(trace.stages[lost])), float(trace.scores[lost])
    box = f"a box that fits, with score {score:.2f},"
    if stage is Stage.NMS:
        other = int(trace.suppressors[lost])
        owner = ", the detection of another object" if other in taken else ""
        text = (
            f"{box} was suppressed by {_name(scene, other)}{owner}: their IoU {float(trace.overlaps[lost]):.2f} exceeds"
            f" nms_threshold={options.nms_threshold:g}"
        )
        return _miss(scene, index, "suppressed", text, lost, other=other)
    if stage is Stage.LIMIT:
        text = f"{box} is not among the max_detections={options.max_detections} best of the image"
        return _miss(scene, index, "limit of detections", text, lost)
    text = f"{box} is not among the pre_nms_top_k={options.pre_nms_top_k} best of its level"
    return _miss(scene, index, "limit of candidates", text, lost)


def _explain_low_score(scene: Scene, index: int) -> Miss:
    """Describe the best score among the locations whose boxes fit, or else among those that training assigns."""
    label = int(scene.objects.labels[index])
    overlap = iou(scene.boxes, scene.objects.boxes[index : index + 1])[:, 0]  # [R]
    scores = scene.scores[:, label]
    fits = overlap >= FITTING_IOU
    best = _best(fits if fits.any() else scene.assigned == index, scores)
    threshold, score = float(scene.thresholds[label]), float(scores[best])
    # A score that reaches the threshold of shown detections may still fail the test of candidates.
    limit = f"threshold {threshold:.3f}" if score < threshold else f"score_threshold={scene.options.score_threshold:g}"
    text = (
        f"the best score for its class is {score:.3f}, too low for {limit} (stride {int(scene.strides[best])}, IoU of"
        f" the box {float(overlap[best]):.2f})"
    )
    return Miss(index, "low score", text, best, scene.boxes[best].tolist())


def _miss(scene: Scene, index: int, reason: Reason, text: str, prediction: int, *, other: int = -1) -> Miss:
    location = int(scene.trace.locations[prediction])
    return Miss(index, reason, text, location, scene.trace.boxes[prediction].tolist(), other)


def _best(mask: Tensor, values: Tensor) -> int:
    """Return the position of the highest value where a mask is set; -1 if it is set nowhere."""
    return int(values.double().masked_fill(~mask, -1.0).argmax()) if mask.any() else -1


def _name(scene: Scene, prediction: int) -> str:
    """Return class and score of a prediction."""
    trace = scene.trace
    return f"{scene.class_names[int(trace.labels[prediction])]} {float(trace.scores[prediction]):.2f}"
