"""Which detections are right, which are wrong, and what was missed.

D detections of all images, B annotated boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.dataset import Annotations
from ..evaluation.coco_metrics import compare, match_states
from ..evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from hotcoco import COCOeval


@dataclass(frozen=True, eq=False)
class Analysis:
    """The detections on a split beside its annotations, matched at IoU 0.5 as COCO does.

    Attributes:
        annotations: the split.
        run: the comparison, for the curves and figures that hotcoco computes.
        confusion: [K + 1, K + 1] shown detections and objects: rows are the true class, columns the predicted one, the
            last row what is no object, the last column what was missed. Boxes are matched whatever their class.
        thresholds: [K] scores from which detections are shown.
        boxes: [D, 4] XYXY, pixels.
        labels: [D].
        scores: [D].
        images: [D] positions in `annotations`.
        states: [D] see `match_states`.
        shown: [D] whether the score reaches the threshold of the class, ignored ones left out.
        missed: [B] objects that no shown detection is matched to; crowds are none.
    """

    annotations: Annotations
    run: COCOeval
    confusion: np.ndarray
    thresholds: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    images: np.ndarray
    states: np.ndarray
    shown: np.ndarray
    missed: np.ndarray

    def counts_of_classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[K] of every class: shown detections that are right, those that are wrong, missed objects."""
        return self._counts(self.labels, self.annotations.labels, len(self.thresholds))

    def counts_of_images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of every image."""
        return self._counts(self.images, self.annotations.image_of, len(self.annotations))

    def _counts(self, of: np.ndarray, of_boxes: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found, wrong = (np.bincount(of[self.shown & (self.states == state)], minlength=kinds) for state in (1, 0))
        return found, wrong, np.bincount(of_boxes[self.missed], minlength=kinds)


def analyse(annotations: Annotations, evaluation: Evaluation, *, default_threshold: float) -> Analysis:
    """Match the detections of an evaluation with the annotations.

    Args:
        annotations: the split.
        evaluation: of this split.
        default_threshold: of classes of which `evaluation.thresholds` has none.
    """
    detections = evaluation.detections
    truth = annotations.to_coco()
    run = compare(truth, detections)
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
        confusion=_confusion(truth, [d for d, keep in zip(detections, shown.tolist(), strict=True) if keep]),
        thresholds=thresholds,
        boxes=boxes,
        labels=labels,
        scores=scores,
        images=np.array([image_of[d["image_id"]] for d in detections], dtype=np.int64),
        states=states,
        shown=shown,
        missed=_missed(annotations, run.image_diagnostics(iou_thr=0.5)["gt_match"], shown),
    )


def _missed(annotations: Annotations, matches: Mapping[int, int], shown: np.ndarray) -> np.ndarray:
    """Matching goes from the highest score down, so hiding low scores changes nothing for the others."""
    detection = np.array([matches.get(i, 0) for i in annotations.annotation_ids.tolist()], dtype=np.int64)  # from 1
    found = np.concatenate([[False], shown])[detection]
    return ~found & ~annotations.crowd


def _confusion(truth: dict[str, Any], shown: list[dict[str, Any]]) -> np.ndarray:
    """hotcoco orders the classes by their ids, here they stand in the order of the labels."""
    found = compare(truth, shown).confusion_matrix(iou_thr=0.5)
    position = {category: i for i, category in enumerate(found["cat_ids"])}
    order = [position[c["id"]] for c in truth["categories"]] + [len(position)]
    return np.asarray(found["matrix"]).astype(np.int64)[np.ix_(order, order)]
