"""Box geometry in both conventions, non-maximum suppression, and the limit of detections.

Boxes are XYXY [D, 4]. `continuous`: width = x2 - x1. `inclusive` (the original code): x2 is the last covered pixel and
width = x2 - x1 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from .choices import BoxConvention

IN_ONE_CALL = {"cuda"}
"""The types of devices where the suppression of all classes is one call: a call costs more there than its work."""


def _extra(convention: BoxConvention) -> float:
    """What a side length has on top of the difference of its ends."""
    return 1.0 if convention == "inclusive" else 0.0


def area(boxes: Tensor, *, convention: BoxConvention = "continuous") -> Tensor:
    """Areas [D] in square pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    extra = _extra(convention)
    return (x2 - x1 + extra) * (y2 - y1 + extra)


def clip(boxes: Tensor, size: tuple[int, int], *, convention: BoxConvention = "continuous") -> Tensor:
    """Move corners [D, 4] into an image of size (height, width): 0..width, or 0..width-1 when inclusive."""
    height, width = (float(side) - _extra(convention) for side in size)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


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
    boxes, labels = boxes[order], labels[order]
    if convention == "inclusive":
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    suppress = _nms_in_one_call if boxes.device.type in IN_ONE_CALL else _nms_class_by_class
    # After the stable sort equal scores rank as given; the ranks themselves stand for the scores.
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[suppress(boxes, ranks, labels, threshold).sort().values]


def _nms_class_by_class(boxes: Tensor, ranks: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The fast way where a call costs nothing: the work is quadratic in the boxes of a call."""
    # In float32 an overlap of exactly 0.6 is a little more than 0.6; the threshold must be rounded the same way.
    threshold = float(np.float32(threshold))
    classes = (torch.nonzero(labels == label).squeeze(1) for label in labels.unique())
    return torch.cat([members[nms(boxes[members], ranks[members], threshold)] for members in classes])


def _nms_in_one_call(boxes: Tensor, ranks: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The fast way on a GPU: every class is moved to a region of its own."""
    boxes, ranks = boxes.double(), ranks.double()
    whole_pixels = (boxes.max() - boxes.min()).ceil() + 1  # such a shift of doubles does not round the boxes
    shifted = boxes + (labels * whole_pixels)[:, None]
    # torchvision rounds the threshold to float32 here; upwards, so that an overlap of exactly the threshold stays.
    rounded = np.float32(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, np.float32(1.0))
    return nms(shifted, ranks, float(rounded))


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
