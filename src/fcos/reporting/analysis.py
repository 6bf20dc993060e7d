"""Correct detections, wrong detections and missed objects of an evaluation.

Shape letters: D detections of all images, B annotated boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.dataset import Annotations
from ..evaluation.coco_metrics import COCO_LIMIT, compare, match_states
from ..evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from hotcoco import COCOeval


@dataclass(frozen=True, eq=False)
class Analysis:
    """Detections on a split, matched to its annotations at IoU 0.5 as COCO does.

    A detection is shown if it scores at least the threshold of its class.

    Attributes:
        annotations: annotations of the split.
        run: hotcoco's comparison, for the curves and figures that it computes.
        confusion: [K + 1, K + 1] confusion matrix of the shown detections. Rows are true classes, columns predicted
            classes. The last row counts detections without an object, the last column missed objects. Boxes are matched
            regardless of class.
        thresholds: [K] score thresholds of the classes.
        detections: the D detections in COCO's result format.
        boxes: [D, 4] XYXY, pixels.
        labels: [D].
        scores: [D].
        images: [D] positions of the images in `annotations`.
        states: [D]; 1 for correct, 0 for wrong, -1 for ignored detections, see `match_states`.
        shown: [D] bool, detections that are shown and not ignored.
        missed: [B] bool, objects that no shown detection is matched to; False for crowds.
    """

    annotations: Annotations
    run: COCOeval
    confusion: np.ndarray
    thresholds: np.ndarray
    detections: list[dict[str, Any]]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    images: np.ndarray
    states: np.ndarray
    shown: np.ndarray
    missed: np.ndarray

    def count_by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count correct shown detections, wrong shown detections and missed objects of every class, each [K]."""
        return self._counts(self.labels, self.annotations.labels, len(self.thresholds))

    def count_by_image(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count correct shown detections, wrong shown detections and missed objects of every image, each [images]."""
        return self._counts(self.images, self.annotations.image_of, len(self.annotations))

    def _counts(
        self, groups: np.ndarray, box_groups: np.ndarray, num_groups: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        correct, wrong = (
            np.bincount(groups[self.shown & (self.states == state)], minlength=num_groups) for state in (1, 0)
        )
        return correct, wrong, np.bincount(box_groups[self.missed], minlength=num_groups)


def analyse(
    annotations: Annotations, evaluation: Evaluation, *, default_threshold: float, max_detections: int = COCO_LIMIT
) -> Analysis:
    """Match the detections of an evaluation to the annotations.

    Args:
        annotations: annotations of the split.
        evaluation: evaluation on this split.
        default_threshold: score threshold of the classes that are missing in `evaluation.thresholds`.
        max_detections: maximum number of detections of the detector per image, see `coco_metrics`.
    """
    detections = evaluation.detections
    truth = annotations.to_coco()
    run = compare(truth, detections, max_detections=max_detections)
    label_of = {category: label for label, category in enumerate(annotations.category_ids)}
    image_of = {image: index for index, image in enumerate(annotations.image_ids.tolist())}
    boxes = np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[d["category_id"]] for d in detections], dtype=np.int64)
    scores = np.array([d["score"] for d in detections], dtype=np.float64)
    states = match_states(run, len(detections))
    thresholds = np.array([evaluation.thresholds.get(name, default_threshold) for name in annotations.class_names])
    shown = (scores >= thresholds[labels]) & (states >= 0)
    return Analysis(
        annotations=annotations,
        run=run,
        confusion=_confusion(
            truth,
            [d for d, keep in zip(detections, shown.tolist(), strict=True) if keep],
            max_detections=max_detections,
        ),
        thresholds=thresholds,
        detections=detections,
        boxes=boxes,
        labels=labels,
        scores=scores,
        images=np.array([image_of[d["image_id"]] for d in detections], dtype=np.int64),
        states=states,
        shown=shown,
        missed=_missed(annotations, run.image_diagnostics(iou_thr=0.5)["gt_match"], shown),
    )


def _missed(annotations: Annotations, matches: Mapping[int, int], shown: np.ndarray) -> np.ndarray:
    """Return the objects without a shown detection, [B] bool, without crowds.

    Matching goes from the highest score down, so hiding detections with low scores does not change the other matches.
    """
    # Positions of the matched detections, counted from 1; 0 for unmatched objects.
    detection_of = np.array([matches.get(i, 0) for i in annotations.annotation_ids.tolist()], dtype=np.int64)
    is_detected = np.concatenate([[False], shown])[detection_of]
    return ~is_detected & ~annotations.crowd


def _confusion(truth: dict[str, Any], shown: list[dict[str, Any]], *, max_detections: int) -> np.ndarray:
    """Compute the confusion matrix with the classes ordered by label; hotcoco orders them by category id."""
    result = compare(truth, shown, max_detections=max_detections).confusion_matrix(iou_thr=0.5)
    position = {category: i for i, category in enumerate(result["cat_ids"])}
    order = [position[c["id"]] for c in truth["categories"]] + [len(position)]
    return np.asarray(result["matrix"]).astype(np.int64)[np.ix_(order, order)]
