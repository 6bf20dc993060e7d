"""Box geometry in both conventions, non-maximum suppression, and the limit of detections.

Boxes are XYXY [D, 4]. `continuous`: width = x2 - x1. `inclusive` (the original code): x2 is the last covered pixel and
width = x2 - x1 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from ..structures import BoxConvention


def _extra(convention: BoxConvention) -> float:
    """What a side length has on top of the difference of its ends."""
    return 1.0 if convention == "inclusive" else 0.0


def xywh_to_xyxy(boxes: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Corner and size [D, 4] to two corners [D, 4]; an inclusive box of width 0 ends where it starts."""
    x, y, width, height = boxes.unbind(-1)
    extra = _extra(convention)
    return torch.stack([x, y, x + (width - extra).clamp(min=0), y + (height - extra).clamp(min=0)], dim=-1)


def xyxy_to_xywh(boxes: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Two corners [D, 4] to corner and size [D, 4]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    extra = _extra(convention)
    return torch.stack([x1, y1, x2 - x1 + extra, y2 - y1 + extra], dim=-1)


def area(boxes: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Areas [D] in square pixels."""
    _, _, width, height = xyxy_to_xywh(boxes, convention=convention).unbind(-1)
    return width * height


def clip(boxes: Tensor, size: tuple[int, int], *, convention: BoxConvention = "continuous") -> Tensor:
    """Move corners [D, 4] into an image of size (height, width): 0..width, or 0..width-1 when inclusive."""
    height, width = (float(side) - _extra(convention) for side in size)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def pairwise_iou(a: Tensor, b: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Intersection over union [A, B] of boxes a [A, 4] and b [B, 4]."""
    top_left = torch.maximum(a[:, None, :2], b[:, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[:, 2:])
    intersection = (bottom_right - top_left + _extra(convention)).clamp(min=0).prod(dim=-1)
    union = area(a, convention=convention)[:, None] + area(b, convention=convention) - intersection
    return intersection / union


def class_wise_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, *, convention: BoxConvention = "continuous"
) -> Tensor:
    """Greedy suppression inside each class: a box goes when its IoU with a better one is above the threshold.

    Args:
        boxes: [D, 4].
        scores: [D].
        labels: [D] int64.
        threshold: IoU in (0, 1]; 0 or less suppresses nothing.
        convention: how widths are counted.

    Returns:
        Indices of the kept boxes, best score first (equal scores: in the order given).
    """
    order = scores.argsort(descending=True, stable=True)
    if threshold <= 0 or len(boxes) == 0:
        return order
    boxes = boxes[order]
    labels = labels[order]
    if convention == "inclusive":
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    # In float32 an overlap of exactly 0.6 is a little more than 0.6; the threshold must be rounded the same way.
    threshold = float(np.float32(threshold))
    # After the stable sort equal scores rank as given; the ranks themselves stand for the scores.
    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device)
    if boxes.device.type == "cpu":
        # The work is quadratic in the boxes of a call, so a call for each class is the fast way without a launch cost.
        ranks = ranks.to(boxes.dtype)
        kept = [
            members[nms(boxes[members], ranks[members], threshold)]
            for members in (torch.nonzero(labels == label).squeeze(1) for label in labels.unique())
        ]
        return order[torch.cat(kept).sort().values]
    # Shift every class to a region of its own; in float64 the shift does not round the boxes.
    boxes = boxes.double()
    shifted = boxes + (labels * (boxes.max() - boxes.min() + 1))[:, None]
    return order[nms(shifted, ranks.double(), threshold).sort().values]


def limit_detections(scores: Tensor, limit: int, *, keep_ties: bool = False) -> Tensor:
    """Which detections remain under a limit.

    Args:
        scores: [D].
        limit: how many; 0 or less: all.
        keep_ties: keep also everything that scores the same as the last one, as the original does.

    Returns:
        Ascending indices of the `limit` highest scores.
    """
    if limit <= 0 or len(scores) <= limit:
        return torch.arange(len(scores), device=scores.device)
    best = scores.topk(limit)
    if keep_ties:
        return torch.nonzero(scores >= best.values[-1]).squeeze(1)
    return best.indices.sort().values
