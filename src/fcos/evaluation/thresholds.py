"""The score threshold of every class at which its F1 is highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def best_thresholds(
    detections: Sequence[Mapping[str, Any]], states: np.ndarray, boxes_per_class: Mapping[int, int]
) -> dict[int, float]:
    """Find the threshold of every class, see `best_threshold`.

    Args:
        detections: D COCO results.
        states: [D], see `match_states`.
        boxes_per_class: objects of every category id, crowds left out.

    Returns:
        By category id; without the classes of which no object was found.
    """
    categories = np.array([d["category_id"] for d in detections], dtype=np.int64)
    scores = np.array([d["score"] for d in detections], dtype=np.float64)
    thresholds = {}
    for category, boxes in boxes_per_class.items():
        counted = (categories == category) & (states >= 0)
        threshold = best_threshold(scores[counted], states[counted] == 1, boxes)
        if threshold is not None:
            thresholds[category] = threshold
    return thresholds


def best_threshold(scores: np.ndarray, correct: np.ndarray, boxes: int) -> float | None:
    """Find the threshold at which the F1 of a class's detections, 2 TP / (detections + objects), is highest.

    Matching is greedy from the highest score down, so a threshold takes detections away without changing which of the
    others are correct. Of equally good thresholds the highest is taken, and of the gap between two scores its middle,
    where the choice depends on neither.

    Args:
        scores: [D] of the detections in 0..1.
        correct: [D] whether each is matched to an object.
        boxes: number of objects.

    Returns:
        Detections that score at least this are shown; None: no detection is correct.
    """
    if not correct.any():
        return None
    values, group = np.unique(-scores, return_inverse=True)  # descending; equal scores stay or go together
    shown = np.bincount(group).cumsum()
    f1 = 2 * np.bincount(group, weights=correct).cumsum() / (shown + boxes)
    best = int(f1.argmax())  # the first of several
    lowest_shown, next_score = -values[best], -values[best + 1] if best + 1 < len(values) else 0.0
    return float((lowest_shown + next_score) / 2)
