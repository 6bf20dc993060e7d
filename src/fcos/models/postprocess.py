"""Conversion of the head's outputs to detections: decoding, candidate selection, suppression, limit.

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
    """Compute boxes [..., 4] XYXY from locations [..., 2] (x, y) and distances [..., 4], all in pixels."""
    return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)


@dataclass(frozen=True)
class Postprocess:
    """Options of the conversion from raw outputs to detections.

    Attributes:
        score: `sqrt`: square root of class probability times centerness; `product`: the product itself.
        score_threshold: threshold in 0..1 that candidates must exceed.
        threshold_on: quantity compared with `score_threshold`: class probability or score.
        pre_nms_top_k: largest number of candidates kept per level and image.
        top_k_on: quantity that ranks these candidates: class probability or score.
        nms_threshold: IoU above which the lower-scoring of two boxes of a class is suppressed; 0 or less: no
            suppression.
        max_detections: largest number of detections per image; 0 or less: no limit.
        box_convention: convention of the boxes. `inclusive` reproduces the original exactly: boxes end at width - 1 and
            height - 1, detections that tie with the last one are kept, and the next two options are on.
        detect_in_padding: whether locations in the padding detect, too, as in all other projects; results then depend
            on the batch.
        keep_empty_boxes: whether to keep boxes without area inside the image.
        clip_after_nms: whether to clip boxes after suppression; otherwise before. If after, boxes without area are
            removed after `max_detections` is applied and are not replaced, as in other projects.
        default_threshold: score threshold for displaying detections of classes without a per-class threshold.
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
    """Decode and score the boxes of every image and keep the best as candidates, the input of `suppress`.

    Args:
        logits: L tensors [N, K, H, W] of class logits.
        ltrb: L tensors [N, 4, H, W] of distances in pixels.
        centerness: L tensors [N, 1, H, W] of centerness logits.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        sizes: (height, width) of the N images without the padding.
        options: options of scoring, selection and clipping.

    Returns:
        Candidates of each of the N images, level by level, in the pixels of `points` and the box convention of
        `options`. They are clipped to their image unless `clip_after_nms` is set.

    Source: FCOS, section 3.1, where the score is the product; the square root follows the original code.
    """
    use_padding = options.detect_in_padding or options.box_convention == "inclusive"
    results = []
    for image, size in enumerate(sizes):
        levels = [
            _select_candidates(
                logits[level][image],
                ltrb[level][image],
                centerness[level][image],
                points[level],
                image_size=None if use_padding else size,
                options=options,
            )
            for level in range(len(points))
        ]
        boxes, scores, labels = (torch.cat(tensors) for tensors in zip(*levels, strict=True))
        image_candidates = Instances(boxes, labels, scores, size)
        results.append(image_candidates if options.clip_after_nms else _clip_to_image(image_candidates, options))
    return results


def suppress(candidates: Instances, options: Postprocess) -> Instances:
    """Select the detections among the candidates of an image, best score first.

    Args:
        candidates: candidates of one image in one frame, from one view or (test-time augmentation) from several.
        options: options of suppression, limit and clipping.
    """
    convention = options.box_convention
    keep = class_wise_nms(
        candidates.boxes, candidates.scores, candidates.labels, options.nms_threshold, convention=convention
    )
    limit, keep_ties = options.max_detections, convention == "inclusive"
    keep = keep[limit_detections(candidates.scores[keep], limit, keep_ties=keep_ties)]
    detections = candidates[keep]
    return _clip_to_image(detections, options) if options.clip_after_nms else detections


def _clip_to_image(instances: Instances, options: Postprocess) -> Instances:
    """Clip boxes to the image, and remove those without area unless the options keep them."""
    convention = options.box_convention
    clipped = replace(instances, boxes=clip(instances.boxes, instances.size, convention=convention))
    if options.keep_empty_boxes or convention == "inclusive":
        return clipped
    return clipped[(clipped.boxes[:, 2:] > clipped.boxes[:, :2]).all(dim=1)]


def _select_candidates(
    logits: Tensor,
    ltrb: Tensor,
    centerness: Tensor,
    points: Tensor,
    *,
    image_size: tuple[int, int] | None,
    options: Postprocess,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [C, 4], scores [C] and labels [C] of one level of one image, with C <= `pre_nms_top_k`.

    With `image_size` (height, width), only locations inside the image are used.
    """
    flat = logits.flatten()  # [K * H * W]
    # A first test on logits avoids the sigmoid of all of them; the exact test follows on the rest. As the centerness is
    # at most 1, sqrt(probability * centerness) > threshold implies probability > threshold**2.
    sqrt, threshold = options.score == "sqrt", options.score_threshold
    min_probability = threshold**2 if options.threshold_on == "score" and sqrt else threshold
    index = torch.nonzero(flat > _logit(min_probability) - 1e-3).squeeze(1)
    label, location = index // len(points), index % len(points)
    if image_size is not None:
        height, width = image_size
        is_inside = (points[location] < points.new_tensor([width, height])).all(dim=1)
        index, label, location = index[is_inside], label[is_inside], location[is_inside]
    probability = flat[index].sigmoid()
    product = probability * centerness.flatten()[location].sigmoid()
    thresholded = probability if options.threshold_on == "class" else product.sqrt() if sqrt else product
    valid = (thresholded > threshold) & (product >= 0)  # the second test excludes NaN
    rank = torch.where(valid, probability if options.top_k_on == "class" else product, -1.0)
    rank, best = rank.topk(min(options.pre_nms_top_k, len(rank)))
    best = best[rank >= 0]
    boxes = decode(points[location[best]], ltrb.flatten(1).T[location[best]])
    return boxes, product[best].sqrt() if sqrt else product[best], label[best]


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf
