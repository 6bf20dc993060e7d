"""Box geometry in both conventions, overlap, non-maximum suppression, and the limit of detections.

Boxes are XYXY [D, 4]. `continuous`: width = x2 - x1. `inclusive` (the original code): x2 is the last covered pixel and
width = x2 - x1 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .choices import BoxConvention
from .torchvision_import import nms

GPU_TYPES = {"cuda"}
"""Device types on which few large operations are faster than many small ones, because of the overhead of a call."""
_SMALL_CLASS = 40
"""Number of boxes up to which comparing all pairs of a class takes less time than a call of `nms`."""
_MANY_CLASSES = 10
"""Number of classes from which this holds."""
BOXES_PER_DETECTION = 4
"""Number of boxes that non-maximum suppression looks at first, per detection that is needed."""


def _extra_pixels(convention: BoxConvention) -> float:
    """Return the pixels that the convention adds to a difference of coordinates: width = x2 - x1 + extra."""
    return 1.0 if convention == "inclusive" else 0.0


def area(boxes: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Compute the areas [D] in square pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    extra = _extra_pixels(convention)
    return (x2 - x1 + extra) * (y2 - y1 + extra)


def intersection(a: Tensor, b: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Compute the areas [A, B] in square pixels that every box of `a` [A, 4] shares with every box of `b` [B, 4]."""
    extra = _extra_pixels(convention)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a[:, None].unbind(-1), b.unbind(-1)
    width = (ax2.minimum(bx2) - ax1.maximum(bx1) + extra).clamp(min=0)
    return width * (ay2.minimum(by2) - ay1.maximum(by1) + extra).clamp(min=0)


def iou(a: Tensor, b: Tensor, *, convention: BoxConvention = "continuous", shared: Tensor | None = None) -> Tensor:
    """Compute the IoU in 0..1 of every pair of boxes.

    Args:
        a: [A, 4].
        b: [B, 4].
        convention: box convention, which defines widths.
        shared: `intersection(a, b)`, if it has been computed already.

    Returns:
        [A, B]; 0 for two boxes without area.
    """
    if shared is None:
        shared = intersection(a, b, convention=convention)
    union = area(a, convention=convention)[:, None] + area(b, convention=convention) - shared
    return torch.where(union > 0, shared / union, 0.0)


def clip(boxes: Tensor, size: tuple[int, int], *, convention: BoxConvention = "continuous") -> Tensor:
    """Clip boxes [D, 4] to an image of size (height, width): x to 0..width, or 0..width-1 if inclusive; y likewise."""
    height, width = (float(side) - _extra_pixels(convention) for side in size)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def class_wise_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float,
    *,
    convention: BoxConvention = "continuous",
    limit: int = 0,
) -> Tensor:
    """Perform greedy non-maximum suppression per class.

    A box is removed if its IoU with a kept box of the same class and a higher score exceeds the threshold.

    Args:
        boxes: [D, 4].
        scores: [D].
        labels: [D] int64.
        threshold: IoU in (0, 1]; 0 or less disables suppression.
        convention: box convention, which defines widths.
        limit: number of kept boxes that are needed, which saves time: others are missing in the result only if their
            scores are lower than that of the last needed one. 0 or less: all are returned.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their input order.
    """
    order = scores.argsort(descending=True, stable=True)
    if threshold <= 0 or len(boxes) == 0:
        return order
    scores, boxes, labels = (column.index_select(0, order) for column in (scores, boxes, labels))
    if convention == "inclusive":
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    if boxes.device.type in GPU_TYPES:
        return order[_nms_in_one_call(boxes, labels, threshold)]
    # A box depends only on kept boxes with a higher score, so the best boxes come first.
    end = BOXES_PER_DETECTION * limit if limit > 0 else len(boxes)
    kept = _nms_class_by_class(boxes[:end], labels[:end], threshold)
    while end < len(boxes) and not (len(kept) > limit and scores[kept[-1]] < scores[kept[limit - 1]]):
        start, end = end, 4 * end
        pool = torch.cat([kept, torch.arange(start, min(end, len(boxes)), device=boxes.device)])
        kept = pool[_nms_class_by_class(boxes[pool], labels[pool], threshold)]
    return order[kept]


def _nms_class_by_class(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress each class separately: faster where calls are cheap, since the work is quadratic in the boxes.

    Args:
        boxes: [D, 4], best first.
        labels: [D].
        threshold: as of `class_wise_nms`.

    Returns:
        Indices of the kept boxes in ascending order.
    """
    # In float32 an IoU of exactly 0.6 is slightly above 0.6, so the threshold must be rounded in the same way.
    threshold = float(np.float32(threshold))
    if (labels == labels[0]).all():
        return nms(boxes, _ranks(boxes), threshold)
    members = labels.argsort(stable=True)
    sizes = torch.unique_consecutive(labels[members], return_counts=True)[1]
    has_call = (sizes > _SMALL_CLASS) | (len(sizes) < _MANY_CLASSES)
    in_call = has_call.repeat_interleave(sizes)
    kept = [
        group[nms(boxes[group], _ranks(boxes[group]), threshold)]
        for group in members[in_call].split(sizes[has_call].tolist())
    ]
    if len(sizes) >= _MANY_CLASSES:
        others = members[~in_call]
        kept.append(others[_nms_of_small_classes(boxes[others], sizes[~has_call], threshold)])
    return torch.cat(kept).sort().values


def _nms_of_small_classes(boxes: Tensor, sizes: Tensor, threshold: float) -> Tensor:
    """Suppress without a call per class, by comparing all pairs of boxes of a class as `nms` does.

    Args:
        boxes: [D, 4], class by class, best first.
        sizes: [K] numbers of boxes of the classes.
        threshold: as of `class_wise_nms`, rounded to float32.

    Returns:
        Mask [D] of the kept boxes.
    """
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # [D]
    num_better = torch.arange(len(boxes), device=boxes.device) - starts  # [D] boxes of the class with higher scores
    worse = torch.arange(len(boxes), device=boxes.device).repeat_interleave(num_better)  # [P] pairs
    first_pair = num_better.cumsum(0) - num_better
    better = torch.arange(len(worse), device=boxes.device) - (first_pair - starts)[worse]
    areas, a, b = area(boxes), boxes[better], boxes[worse]
    sides = (a[:, 2:].minimum(b[:, 2:]) - a[:, :2].maximum(b[:, :2])).clamp(min=0)
    shared = sides[:, 0] * sides[:, 1]
    exceeds = shared / (areas[better] + areas[worse] - shared) > threshold  # NaN, of two empty boxes, does not
    better, worse = better[exceeds], worse[exceeds]
    kept = torch.ones_like(starts, dtype=torch.bool)
    while True:  # the n-th box of a class is final after n rounds; few are needed
        previous, kept = kept, torch.ones_like(kept)
        kept[worse[previous[better]]] = False
        if torch.equal(kept, previous):
            return kept


def _ranks(boxes: Tensor) -> Tensor:
    """Return scores [D] for boxes [D, 4] that are sorted, so that equal scores keep their order in `nms`."""
    return torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)


def _nms_in_one_call(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress with one call for all classes, each shifted to a separate region: faster on a GPU."""
    boxes = boxes.double()
    whole_pixels = (boxes.max() - boxes.min()).ceil() + 1  # a shift by whole pixels is exact in float64
    shifted = boxes + (labels * whole_pixels)[:, None]
    # torchvision rounds the threshold to float32 here. Rounding it up keeps boxes with an IoU of exactly the threshold.
    rounded = np.float32(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, np.float32(1.0))
    return nms(shifted, _ranks(shifted), float(rounded)).sort().values


def limit_detections(scores: Tensor, limit: int, *, keep_ties: bool = False) -> Tensor:
    """Select the `limit` detections with the highest scores.

    Args:
        scores: [D].
        limit: maximum number of detections; 0 or less: no limit.
        keep_ties: also keep detections with the same score as the last one kept, as the original does; otherwise the
            first of them are kept.

    Returns:
        Indices of the selected detections in ascending order.
    """
    if limit <= 0 or len(scores) <= limit:
        return torch.arange(len(scores), device=scores.device)
    if keep_ties:
        return torch.nonzero(scores >= scores.topk(limit).values[-1]).squeeze(1)
    return scores.argsort(descending=True, stable=True)[:limit].sort().values
