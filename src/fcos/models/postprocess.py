"""Options of the conversion from raw outputs to detections, and its second half: suppression, limit, clipping.

The first half, which decodes the outputs and selects candidates, is in `candidates`.

Shape letters: N images, K classes, D detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..boxes import BOXES_PER_DETECTION, GPU_TYPES, class_wise_nms, clip, limit_detections
from ..choices import BoxConvention, EmptyBoxes, RankedBy, Score
from ..structures import Instances


@dataclass(frozen=True)
class Postprocess:
    """Options of the conversion from raw outputs to detections that all detectors have.

    Attributes:
        score_threshold: threshold in 0..1 that candidates must exceed.
        pre_nms_top_k: largest number of candidates kept per level and image.
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

    score_threshold: float = 0.05
    pre_nms_top_k: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    box_convention: BoxConvention = "continuous"
    detect_in_padding: bool = False
    keep_empty_boxes: bool = False
    clip_after_nms: bool = False
    default_threshold: float = 0.5


@dataclass(frozen=True)
class FCOSPostprocess(Postprocess):
    """Options of the conversion of FCOS's raw outputs.

    Attributes:
        score: `sqrt`: square root of class probability times centerness; `product`: the product itself.
        threshold_on: quantity compared with `score_threshold`: class probability or score.
        top_k_on: quantity that ranks the candidates of `pre_nms_top_k`: class probability or score.
    """

    score: Score = "sqrt"
    threshold_on: RankedBy = "class"
    top_k_on: RankedBy = "score"


@dataclass(frozen=True)
class RoIPostprocess(Postprocess):
    """Options of the conversion of the raw outputs of R-CNN.

    Attributes:
        min_size: smallest width and height of a candidate in pixels, after clipping; 0: no limit.
        empty_boxes: boxes without area inside the image: `remove` them from the candidates, or from the detections
            (`remove_last`), or `keep` them.
    """

    min_size: float = 0.0
    empty_boxes: EmptyBoxes = "remove"


def suppress(candidates: Instances, options: Postprocess) -> Instances:
    """Select the detections among the candidates of an image, best score first.

    Args:
        candidates: candidates of one image in one frame, from one view or (test-time augmentation) from several.
        options: options of suppression, limit and clipping.
    """
    kept = _suppress(candidates, options, limit=options.max_detections)
    detections = candidates[kept[_within_limit(candidates.scores[kept], options)]]
    return clip_instances(detections, options) if options.clip_after_nms else detections


def suppress_images(candidates: Sequence[Instances], options: Postprocess, *, num_classes: int) -> list[Instances]:
    """Select the detections among the candidates of several images, as `suppress` does for each.

    On a GPU, one call serves all images.

    Args:
        candidates: candidates of N images without masks and keypoints, all on the same device.
        options: options of suppression, limit and clipping.
        num_classes: K; labels are smaller.
    """
    if len(candidates) < 2 or candidates[0].boxes.device.type not in GPU_TYPES:
        return [suppress(image, options) for image in candidates]
    # Work grows with the square of the number of boxes, and the best ones suffice in most images. Detections that tie
    # with the last one may be among the others.
    size = BOXES_PER_DETECTION * max(options.max_detections, 0) if options.box_convention == "continuous" else 0
    best = [image[image.scores.argsort(descending=True, stable=True)[:size]] if size else image for image in candidates]
    together = Instances.concatenate(best)
    lengths = torch.tensor([len(image) for image in best])
    number = torch.arange(len(best)).repeat_interleave(lengths).to(together.labels.device)  # of the image
    kept = _suppress(replace(together, labels=together.labels + number * num_classes), options)
    kept = kept[number[kept].argsort(stable=True)]  # image by image, best first
    counts = number[kept].bincount(minlength=len(best)).tolist()
    results = []
    for image, reduced, indices in zip(candidates, best, kept.split(counts), strict=True):
        if len(reduced) < len(image) and len(indices) < options.max_detections:
            results.append(suppress(image, options))
            continue
        found = replace(together[indices], size=image.size)
        found = found[_within_limit(found.scores, options)]
        results.append(clip_instances(found, options) if options.clip_after_nms else found)
    return results


def select_detections(candidates: Instances, options: Postprocess) -> tuple[Tensor, Tensor]:
    """Return the indices of the candidates of an image that suppression keeps, and of those within the limit.

    Both are sorted by descending score.
    """
    kept = _suppress(candidates, options)
    return kept, kept[_within_limit(candidates.scores[kept], options)]


def _suppress(candidates: Instances, options: Postprocess, limit: int = 0) -> Tensor:
    """Return the indices of the candidates that suppression keeps; for `limit` see `class_wise_nms`."""
    columns = candidates.boxes, candidates.scores, candidates.labels
    return class_wise_nms(*columns, options.nms_threshold, convention=options.box_convention, limit=limit)


def _within_limit(scores: Tensor, options: Postprocess) -> Tensor:
    return limit_detections(scores, options.max_detections, keep_ties=options.box_convention == "inclusive")


def clip_to_image(boxes: Tensor, size: tuple[int, int], options: Postprocess) -> tuple[Tensor, Tensor]:
    """Clip boxes [D, 4] to an image of (height, width) `size`.

    Returns:
        The clipped boxes [D, 4], and a mask [D] of those that the options keep, in general those with an area.
    """
    convention = options.box_convention
    clipped = clip(boxes, size, convention=convention)
    if options.keep_empty_boxes or convention == "inclusive":
        return clipped, torch.ones_like(clipped[:, 0], dtype=torch.bool)
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(dim=1)


def clip_instances(instances: Instances, options: Postprocess) -> Instances:
    """Clip boxes to the image, and remove those without area unless the options keep them."""
    boxes, is_kept = clip_to_image(instances.boxes, instances.size, options)
    clipped = replace(instances, boxes=boxes)
    return clipped if is_kept.all() else clipped[is_kept]
