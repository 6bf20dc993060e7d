"""From the head's outputs to detections: decoding, candidates, suppression, limit.

Shape letters: N images, L levels, K classes, H W map size, C candidates, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..boxes import class_wise_nms, clip, limit_detections
from ..choices import BoxConvention, RankedBy, Score
from ..structures import Instances


def decode(points: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes [..., 4] XYXY from locations [..., 2] (x, y) and distances [..., 4], all in pixels."""
    return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)


@dataclass(frozen=True)
class Postprocess:
    """The options that decide which detections are made of the outputs.

    Attributes:
        score: the square root of class probability times centerness, or that product itself.
        score_threshold: a candidate is above it, 0..1.
        threshold_on: what is compared with it: the class probability, or the score.
        pre_nms_top_k: candidates kept per level and image.
        top_k_on: what ranks them: the class probability, or the score.
        nms_threshold: see `class_wise_nms`.
        max_detections: see `limit_detections`.
        box_convention: `inclusive` follows the original to the letter: boxes end at width - 1 and height - 1, ties with
            the last detection stay, and the next two options are on.
        detect_in_padding: locations in the padding detect too, as in all other projects; the result then depends on the
            batch.
        keep_empty_boxes: boxes that have no area inside the image stay.
        clip_after_nms: boxes overlap as they are predicted and are clipped in the end. As in other projects, boxes
            without area are then dropped from the `max_detections`, not replaced.
        default_threshold: score below which detections of a class without a threshold of its own are hidden.
    """

    score: Score = "sqrt"
    score_threshold: float = 0.05
    threshold_on: RankedBy = "class"
    pre_nms_top_k: int = 1000
    top_k_on: RankedBy = "score"
    nms_threshold: float = 0.6
    max_detections: int = 100
    box_convention: BoxConvention = "continuous"
    detect_in_padding: bool = False
    keep_empty_boxes: bool = False
    clip_after_nms: bool = False
    default_threshold: float = 0.5


def candidates(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    options: Postprocess,
) -> list[Instances]:
    """The boxes of every image of a batch that may be detections; `suppress` chooses among them.

    Args:
        logits: L class logits [N, K, H, W].
        ltrb: L distances [N, 4, H, W] in pixels.
        centerness: L logits [N, 1, H, W].
        points: L locations [H * W, 2] in pixels.
        sizes: N (height, width) without padding.
        options: how boxes are scored, kept and clipped.

    Returns:
        N candidates, level by level, in the frame and convention of the arguments; inside their images unless
        `clip_after_nms`.

    Source: FCOS, section 3.1, where the score is the product; its square root as in the original code.
    """
    anywhere = options.detect_in_padding or options.box_convention == "inclusive"
    results = []
    for image, size in enumerate(sizes):
        levels = [
            _candidates(
                logits[level][image],
                ltrb[level][image],
                centerness[level][image],
                points[level],
                within=None if anywhere else size,
                options=options,
            )
            for level in range(len(points))
        ]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        every = Instances(boxes, labels, scores, size)
        results.append(every if options.clip_after_nms else _inside(every, options))
    return results


def suppress(candidates: Instances, options: Postprocess) -> Instances:
    """The detections among the candidates of an image, best score first.

    Args:
        candidates: see `candidates`; of one view of the image or of several, in one frame.
        options: threshold of the overlap, limit, and when boxes are clipped.
    """
    convention = options.box_convention
    kept = class_wise_nms(
        candidates.boxes, candidates.scores, candidates.labels, options.nms_threshold, convention=convention
    )
    limit, keep_ties = options.max_detections, convention == "inclusive"
    kept = kept[limit_detections(candidates.scores[kept], limit, keep_ties=keep_ties)]
    detections = candidates[kept]
    return _inside(detections, options) if options.clip_after_nms else detections


def _inside(instances: Instances, options: Postprocess) -> Instances:
    """Clipped to the image, and without those that have no area there."""
    convention = options.box_convention
    clipped = replace(instances, boxes=clip(instances.boxes, instances.size, convention=convention))
    if options.keep_empty_boxes or convention == "inclusive":
        return clipped
    return clipped[(clipped.boxes[:, 2:] > clipped.boxes[:, :2]).all(dim=1)]


def _candidates(
    logits: Tensor,
    ltrb: Tensor,
    centerness: Tensor,
    points: Tensor,
    *,
    within: tuple[int, int] | None,
    options: Postprocess,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [C, 4], scores [C] and labels [C] of one level of one image, at most `pre_nms_top_k`; `within` an image."""
    flat = logits.flatten()  # [K * H * W]
    # Comparing logits spares the sigmoid of everything; the exact test follows on what is left. The centerness being 1
    # at most, a root above the threshold needs a probability above its square.
    sqrt, threshold = options.score == "sqrt", options.score_threshold
    least = threshold**2 if options.threshold_on == "score" and sqrt else threshold
    index = torch.nonzero(flat > _logit(least) - 1e-3).squeeze(1)
    label, location = index // len(points), index % len(points)
    if within is not None:
        height, width = within
        real = (points[location] < points.new_tensor([width, height])).all(dim=1)
        index, label, location = index[real], label[real], location[real]
    probability = flat[index].sigmoid()
    product = probability * centerness.flatten()[location].sigmoid()
    compared = probability if options.threshold_on == "class" else product.sqrt() if sqrt else product
    valid = (compared > threshold) & (product >= 0)  # neither below the threshold nor NaN
    rank = torch.where(valid, probability if options.top_k_on == "class" else product, -1.0)
    rank, best = rank.topk(min(options.pre_nms_top_k, len(rank)))
    best = best[rank >= 0]
    boxes = decode(points[location[best]], ltrb.flatten(1).T[location[best]])
    return boxes, product[best].sqrt() if sqrt else product[best], label[best]


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf
