"""Path of the predictions of an image through post-processing: where each was dropped, and which became detections.

Shape letters: L levels, K classes, H W map size, R locations over all levels, P predictions, D detections, S suppressed
and T kept predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from ..boxes import iou
from ..models.candidates import LevelCandidates, select_candidates
from ..models.postprocess import FCOSPostprocess, clip_to_image, select_detections
from ..structures import Instances

_ROWS = 512  # suppressed boxes compared at a time


class Stage(IntEnum):
    """Step of post-processing that dropped a prediction above the score threshold; later steps have higher values."""

    TOP_K = 0
    """It is not among the `pre_nms_top_k` best of its level."""
    EMPTY = 1
    """Its box has no area inside the image."""
    NMS = 2
    """Non-maximum suppression removed it."""
    LIMIT = 3
    """It is not among the `max_detections` best of the image."""
    DETECTED = 4
    """It is a detection."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Predictions (location and class) of an image whose score exceeds `score_threshold`.

    Attributes:
        boxes: [P, 4] XYXY, inside the image.
        scores: [P].
        labels: [P].
        locations: [P] positions among the R locations of all levels, finest level first.
        stages: [P] values of `Stage`.
        suppressors: [P] position of the prediction that suppressed this one; -1 if it was not suppressed.
        overlaps: [P] IoU with the suppressor, before clipping with `clip_after_nms`; 0 if it was not suppressed.
        detections: [D] positions of the detections, best first.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    locations: Tensor
    stages: Tensor
    suppressors: Tensor
    overlaps: Tensor
    detections: Tensor


def trace_predictions(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    size: tuple[int, int],
    *,
    options: FCOSPostprocess,
) -> Trace:
    """Follow the predictions of an image through the functions that detection uses.

    Args:
        logits: L tensors [K, H, W] of class logits.
        ltrb: L tensors [4, H, W] of distances in pixels.
        centerness: L tensors [1, H, W] of centerness logits.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        size: (height, width) of the image without the padding.
        options: options of detection.

    Returns:
        The predictions, in pixels of `points` and the box convention of `options`.
    """
    levels, in_top_k, start = [], [], 0
    for maps in zip(logits, ltrb, centerness, points, strict=True):
        unlimited = replace(options, pre_nms_top_k=maps[0].numel())
        best = select_candidates(*maps, image_size=size, options=options)
        passed = select_candidates(*maps, image_size=size, options=unlimited)
        keys, best_keys = (found.labels * len(maps[3]) + found.locations for found in (passed, best))
        others = ~torch.isin(keys, best_keys)
        # The candidates first, in the order in which detection has them, on which ties depend.
        joined = LevelCandidates(*(torch.cat([a, b[others]]) for a, b in zip(best, passed, strict=True)))
        levels.append(joined._replace(locations=joined.locations + start))
        in_top_k.append(torch.arange(len(joined.labels)) < len(best.labels))
        start += len(maps[3])
    boxes, scores, labels, locations = (torch.cat(column) for column in zip(*levels, strict=True))
    stages = torch.where(torch.cat(in_top_k), int(Stage.EMPTY), int(Stage.TOP_K))
    clipped, has_area = clip_to_image(boxes, size, options)
    is_candidate = stages == Stage.EMPTY
    if not options.clip_after_nms:
        boxes, is_candidate = clipped, is_candidate & has_area

    index = torch.nonzero(is_candidate).squeeze(1)
    kept, best = select_detections(Instances(boxes[index], labels[index], scores[index], size), options)
    kept, detections = index[kept], index[best]
    stages[index] = Stage.NMS
    stages[kept] = Stage.LIMIT
    stages[detections] = Stage.DETECTED
    suppressors, overlaps = torch.full_like(labels, -1), torch.zeros_like(scores)
    suppressed = torch.nonzero(stages == Stage.NMS).squeeze(1)
    if len(suppressed):
        found = _find_suppressors(Instances(boxes, labels, scores, size), suppressed, kept, options)
        suppressors[suppressed], overlaps[suppressed] = found
    if options.clip_after_nms:
        stages[detections[~has_area[detections]]] = Stage.EMPTY
        detections = detections[has_area[detections]]
    return Trace(clipped, scores, labels, locations, stages, suppressors, overlaps, detections)


def _find_suppressors(
    predictions: Instances, suppressed: Tensor, kept: Tensor, options: FCOSPostprocess
) -> tuple[Tensor, Tensor]:
    """Return the box that suppressed each prediction, [S], the best kept one that overlaps too much, and the IoU, [S].

    Args:
        predictions: the P predictions.
        suppressed: [S] positions of the suppressed predictions.
        kept: [T] positions of the kept ones, best first.
        options: options of detection.
    """
    boxes, labels, scores = predictions.boxes, predictions.labels, predictions.scores
    rank = torch.empty_like(labels)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(len(scores))
    found = []
    for rows in suppressed.split(_ROWS):
        overlap = iou(boxes[rows], boxes[kept], convention=options.box_convention)
        is_better = (labels[rows, None] == labels[kept]) & (rank[kept] < rank[rows, None])
        overlap = overlap.where(is_better, -1.0)
        exceeds = overlap > options.nms_threshold
        # Without any, the IoU is the threshold up to rounding.
        first = torch.where(exceeds.any(dim=1), exceeds.int().argmax(dim=1), overlap.argmax(dim=1))
        found.append((kept[first], overlap.gather(1, first[:, None])[:, 0]))
    suppressors, overlaps = (torch.cat(column) for column in zip(*found, strict=True))
    return suppressors, overlaps
