"""From the head's outputs to detections: decoding, candidates, suppression, limit.

Shape letters: N images, L levels, K classes, H W map size, C candidates, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..boxes import class_wise_nms, clip, limit_detections
from ..structures import BoxConvention, Instances


def decode(points: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes [..., 4] XYXY from locations [..., 2] (x, y) and distances [..., 4], all in pixels."""
    return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)


def candidates(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    score: Literal["sqrt", "product"],
    score_threshold: float,
    threshold_on: Literal["class", "score"],
    pre_nms_top_k: int,
    top_k_on: Literal["class", "score"],
    box_convention: BoxConvention,
    detect_in_padding: bool,
    keep_empty_boxes: bool,
    clip_after_nms: bool,
) -> list[Instances]:
    """The boxes of every image of a batch that may be detections; `suppress` chooses among them.

    Args:
        logits: L class logits [N, K, H, W].
        ltrb: L distances [N, 4, H, W] in pixels.
        centerness: L logits [N, 1, H, W].
        points: L locations [H * W, 2] in pixels.
        sizes: N (height, width) without padding.
        score: the square root of class probability times centerness, or that product itself.
        score_threshold: a candidate is above it.
        threshold_on: with what: its class probability, or its score.
        pre_nms_top_k: candidates kept per level and image.
        top_k_on: the best by what.
        box_convention: `inclusive` follows the original to the letter: boxes end at width - 1 and height - 1, and both
            of the following options are on.
        detect_in_padding: locations in the padding detect too, as in all other projects; the result then depends on
            the batch.
        keep_empty_boxes: boxes that have no area inside the image stay.
        clip_after_nms: leave boxes as they are predicted, for `suppress` to clip.

    Returns:
        N candidates, level by level, in the frame and convention of the arguments; inside their images unless
        `clip_after_nms`.

    Source: FCOS, section 3.1, where the score is the product; its square root as in the original code.
    """
    inclusive = box_convention == "inclusive"
    results = []
    for image, size in enumerate(sizes):
        found = [
            _candidates(
                logits[level][image],
                ltrb[level][image],
                centerness[level][image],
                points[level],
                within=None if detect_in_padding or inclusive else size,
                score=score,
                score_threshold=score_threshold,
                threshold_on=threshold_on,
                top_k=pre_nms_top_k,
                top_k_on=top_k_on,
            )
            for level in range(len(points))
        ]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        every = Instances(boxes, labels, scores, size)
        results.append(every if clip_after_nms else _inside(every, box_convention, keep_empty_boxes))
    return results


def suppress(
    candidates: Instances,
    *,
    nms_threshold: float,
    max_detections: int,
    box_convention: BoxConvention,
    keep_empty_boxes: bool,
    clip_after_nms: bool,
) -> Instances:
    """The detections among the candidates of an image, best score first.

    Args:
        candidates: see `candidates`; of one view of the image or of several, in one frame.
        nms_threshold: see `class_wise_nms`.
        max_detections: see `limit_detections`.
        box_convention: of the boxes; `inclusive`: ties with the last detection stay, as in the original.
        keep_empty_boxes: see `candidates`.
        clip_after_nms: the candidates were not clipped, the detections are. As in other projects, boxes without area
            are dropped from the `max_detections` then, not replaced.
    """
    kept = class_wise_nms(
        candidates.boxes, candidates.scores, candidates.labels, nms_threshold, convention=box_convention
    )
    kept = kept[limit_detections(candidates.scores[kept], max_detections, keep_ties=box_convention == "inclusive")]
    found = candidates[kept]
    return _inside(found, box_convention, keep_empty_boxes) if clip_after_nms else found


def _inside(found: Instances, convention: BoxConvention, keep_empty: bool) -> Instances:
    """Clipped to the image, and without what has no area there."""
    found = replace(found, boxes=clip(found.boxes, found.size, convention=convention))
    if keep_empty or convention == "inclusive":
        return found
    return found[(found.boxes[:, 2:] > found.boxes[:, :2]).all(dim=1)]


def _candidates(
    logits: Tensor,
    ltrb: Tensor,
    centerness: Tensor,
    points: Tensor,
    *,
    within: tuple[int, int] | None,
    score: Literal["sqrt", "product"],
    score_threshold: float,
    threshold_on: Literal["class", "score"],
    top_k: int,
    top_k_on: Literal["class", "score"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [C, 4], scores [C] and labels [C] of one level of one image, at most `top_k`."""
    flat = logits.flatten()  # [K * H * W]
    # Comparing logits spares the sigmoid of everything; the exact test follows on what is left. The centerness being 1
    # at most, a root above the threshold needs a probability above its square.
    least = score_threshold**2 if threshold_on == "score" and score == "sqrt" else score_threshold
    index = torch.nonzero(flat > _logit(least) - 1e-3).squeeze(1)
    label, location = index // len(points), index % len(points)
    if within is not None:
        height, width = within
        real = (points[location] < points.new_tensor([width, height])).all(dim=1)
        index, label, location = index[real], label[real], location[real]
    probability = flat[index].sigmoid()
    product = probability * centerness.flatten()[location].sigmoid()
    compared = probability if threshold_on == "class" else product.sqrt() if score == "sqrt" else product
    valid = (compared > score_threshold) & (product >= 0)  # neither below the threshold nor NaN
    rank = torch.where(valid, probability if top_k_on == "class" else product, -1.0)
    rank, best = rank.topk(min(top_k, len(rank)))
    best = best[rank >= 0]
    boxes = decode(points[location[best]], ltrb.flatten(1).T[location[best]])
    return boxes, product[best].sqrt() if score == "sqrt" else product[best], label[best]


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf
