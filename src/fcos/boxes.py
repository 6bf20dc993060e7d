"""Box geometry in both conventions, overlap, non-maximum suppression, and the limit of detections.

Boxes are XYXY [D, 4]. `continuous`: width = x2 - x1. `inclusive` (the original code): x2 is the last covered pixel and
width = x2 - x1 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from .choices import BoxConvention

GPU_TYPES = {"cuda"}
"""Device types on which few large operations are faster than many small ones, because of the overhead of a call."""


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


def iou(a: Tensor, b: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Compute the IoU in 0..1 of every pair of boxes.

    Args:
        a: [A, 4].
        b: [B, 4].
        convention: box convention, which defines widths.

    Returns:
        [A, B]; 0 for two boxes without area.
    """
    shared = intersection(a, b, convention=convention)
    union = area(a, convention=convention)[:, None] + area(b, convention=convention) - shared
    return torch.where(union > 0, shared / union, 0.0)


def clip(boxes: Tensor, size: tuple[int, int], *, convention: BoxConvention = "continuous") -> Tensor:
    """Clip boxes [D, 4] to an image of size (height, width): x to 0..width, or 0..width-1 if inclusive; y likewise."""
    height, width = (float(side) - _extra_pixels(convention) for side in size)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def class_wise_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, *, convention: BoxConvention = "continuous"
) -> Tensor:
    """Perform greedy non-maximum suppression per class.

    A box is removed if its IoU with a kept box of the same class and a higher score exceeds the threshold.

    Args:
        boxes: [D, 4].
        scores: [D].
        labels: [D] int64.
        threshold: IoU in (0, 1]; 0 or less disables suppression.
        convention: box convention, which defines widths.

    Returns:
        Indices of the kept boxes by descending score; equal scores keep their input order.
    """
    order = scores.argsort(descending=True, stable=True)
    if threshold <= 0 or len(boxes) == 0:
        return order
    boxes, labels = boxes[order], labels[order]
    if convention == "inclusive":
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    suppress = _nms_in_one_call if boxes.device.type in GPU_TYPES else _nms_class_by_class
    # Ranks replace the scores, so that equal scores keep their input order in nms.
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[suppress(boxes, ranks, labels, threshold).sort().values]


def _nms_class_by_class(boxes: Tensor, ranks: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress with one call per class: faster where calls are cheap, since the work is quadratic in the boxes."""
    # In float32 an IoU of exactly 0.6 is slightly above 0.6, so the threshold must be rounded in the same way.
    threshold = float(np.float32(threshold))
    classes = (torch.nonzero(labels == label).squeeze(1) for label in labels.unique())
    return torch.cat([members[nms(boxes[members], ranks[members], threshold)] for members in classes])


def _nms_in_one_call(boxes: Tensor, ranks: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress with one call for all classes, each shifted to a separate region: faster on a GPU."""
    boxes, ranks = boxes.double(), ranks.double()
    whole_pixels = (boxes.max() - boxes.min()).ceil() + 1  # a shift by whole pixels is exact in float64
    shifted = boxes + (labels * whole_pixels)[:, None]
    # torchvision rounds the threshold to float32 here. Rounding it up keeps boxes with an IoU of exactly the threshold.
    rounded = np.float32(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, np.float32(1.0))
    return nms(shifted, ranks, float(rounded))


def limit_detections(scores: Tensor, limit: int, *, keep_ties: bool = False) -> Tensor:
    """Select the `limit` detections with the highest scores.

    Args:
        scores: [D].
        limit: maximum number of detections; 0 or less: no limit.
        keep_ties: also keep detections with the same score as the last one kept, as the original does.

    Returns:
        Indices of the selected detections in ascending order.
    """
    if limit <= 0 or len(scores) <= limit:
        return torch.arange(len(scores), device=scores.device)
    best = scores.topk(limit)
    if keep_ties:
        return torch.nonzero(scores >= best.values[-1]).squeeze(1)
    return best.indices.sort().values
