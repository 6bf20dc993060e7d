"""Per-class score thresholds with the highest F1, drawn towards the default for classes with few objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PRIOR_OBJECTS = 20  # number of objects that count as much as the default threshold


def best_thresholds(
    detections: Sequence[Mapping[str, Any]], states: np.ndarray, boxes_per_class: Mapping[int, int]
) -> dict[int, float]:
    """Find the score threshold with the highest F1 for every class, see `best_threshold`.

    Args:
        detections: D detections in the COCO result format.
        states: [D]; 1 for correct, 0 for wrong, -1 for ignored detections, see `match_states`.
        boxes_per_class: number of objects by category id, without crowds.

    Returns:
        Thresholds by category id. Classes without a correct detection are missing.
    """
    categories = np.array([d["category_id"] for d in detections], dtype=np.int64)
    scores = np.array([d["score"] for d in detections], dtype=np.float64)
    order = np.argsort(categories, kind="stable")
    order = order[states[order] >= 0]
    ids, starts = np.unique(categories[order], return_index=True)
    rows_of = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=False))  # without ids, one empty part
    thresholds = {}
    for category, boxes in boxes_per_class.items():
        rows = rows_of.get(category, order[:0])
        threshold = best_threshold(scores[rows], states[rows] == 1, boxes)
        if threshold is not None:
            thresholds[category] = threshold
    return thresholds


def best_threshold(scores: np.ndarray, correct: np.ndarray, boxes: int) -> float | None:
    """Find the score threshold with the highest F1, 2 TP / (detections + objects), for the detections of one class.

    Matching is greedy from the highest score down, so a threshold removes detections without changing which of the
    others are correct. Among equally good thresholds the highest is chosen. The result is halfway between the lowest
    score that is shown and the next lower score (or 0), so that it does not depend on the exact value of either.

    Args:
        scores: [D] scores of the detections, in 0..1.
        correct: [D] bool, True for detections matched to an object.
        boxes: number of objects.

    Returns:
        The threshold; detections that score at least this are shown. None if no detection is correct.
    """
    if not correct.any():
        return None
    values, group = np.unique(-scores, return_inverse=True)  # descending; equal scores are kept or removed together
    shown = np.bincount(group).cumsum()
    f1 = 2 * np.bincount(group, weights=correct).cumsum() / (shown + boxes)
    best = int(f1.argmax())  # the first maximum: the highest threshold
    lowest_shown, next_score = -values[best], -values[best + 1] if best + 1 < len(values) else 0.0
    return float((lowest_shown + next_score) / 2)


def shrink_thresholds(
    thresholds: Mapping[str, float], boxes_per_class: Mapping[str, int], *, default: float
) -> dict[str, float]:
    """Draw thresholds towards the default, the more the fewer objects they were chosen with.

    The threshold with the highest F1 on a handful of objects is little better than chance, and may hide most of the
    correct detections in other images. The result is the mean of the threshold, weighted by the number of objects, and
    the default, weighted by 20 objects: with 4 objects it stays close to the default, with 400 close to the threshold.

    Args:
        thresholds: thresholds by class name.
        boxes_per_class: number of objects by class name, without crowds.
        default: threshold of a class without objects, see `DetectionModel.default_threshold`.
    """
    return {
        name: (boxes_per_class[name] * value + _PRIOR_OBJECTS * default) / (boxes_per_class[name] + _PRIOR_OBJECTS)
        for name, value in thresholds.items()
    }
