"""Average recall of proposals, boxes of objects of any class.

Shape letters: P proposals and M objects of an image, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..boxes import iou

if TYPE_CHECKING:
    from ..data.dataset import Annotations

_AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""Smallest and largest area of the objects in square pixels, both included, by suffix."""
_LIMITS = (10, 100, 1000)
PROPOSAL_METRICS = tuple(f"AR{size}{limit}_proposals" for limit in _LIMITS for size in _AREAS)
"""Names of the metrics: AR of at most 10, 100 or 1000 proposals per image, of all, small, medium and large objects."""
_THRESHOLDS = np.arange(0.5, 0.95 + 1e-5, 0.05).astype(np.float32)  # [T]


def proposal_recall(
    annotations: Annotations, proposals: list[dict[str, Any]], *, limits: Sequence[int] = _LIMITS
) -> dict[str, float]:
    """Compute the metrics of `PROPOSAL_METRICS`; NaN without objects.

    Average recall is the fraction of objects with a proposal, averaged over IoU thresholds from 0.5 to 0.95. Object and
    proposal with the highest IoU of an image are matched with each other, then those with the highest IoU among the
    rest. COCO's AR matches the proposals in the order of their scores, once for every threshold.

    Args:
        annotations: ground truth, whose classes are not distinguished; crowds are left out.
        proposals: proposals in the COCO result format.
        limits: largest numbers of proposals per image, those with the highest scores.

    Source: the original (`evaluate_box_proposals`), whose limits are 100 and 1000.
    """
    boxes = np.array([p["bbox"] for p in proposals], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rows_of: dict[int, list[int]] = {}
    for row in sorted(range(len(proposals)), key=lambda row: -proposals[row]["score"]):
        rows_of.setdefault(proposals[row]["image_id"], []).append(row)
    pairs = {f"AR{size}{limit}_proposals": (area, limit) for limit in limits for size, area in _AREAS.items()}
    found = {name: [np.zeros(0, dtype=np.float32)] for name in pairs}
    for index, image_id in enumerate(annotations.image_ids.tolist()):
        span = annotations.span(index)
        is_object, areas = ~annotations.crowd[span], annotations.areas[span]
        found_boxes = torch.from_numpy(boxes[rows_of.get(image_id, [])])
        overlaps = iou(torch.from_numpy(annotations.boxes[span]), found_boxes).numpy()  # [M, P]
        for name, ((smallest, largest), limit) in pairs.items():
            is_counted = is_object & (areas >= smallest) & (areas <= largest)
            found[name].append(_match(overlaps[is_counted, :limit]))
    recalls = {name: np.concatenate(parts)[:, None] >= _THRESHOLDS for name, parts in found.items()}  # [objects, T]
    return {name: float(recall.mean()) if len(recall) else float("nan") for name, recall in recalls.items()}


def _match(overlaps: np.ndarray) -> np.ndarray:
    """Return the IoU of every object [M] with its proposal, 0 without one, in the order of the matching."""
    overlaps, found = overlaps.copy(), np.zeros(len(overlaps), dtype=np.float32)
    for i in range(min(overlaps.shape)):
        matched, proposal = np.unravel_index(overlaps.argmax(), overlaps.shape)
        found[i] = overlaps[matched, proposal]
        overlaps[matched], overlaps[:, proposal] = -1, -1
    return found
