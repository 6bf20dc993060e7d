"""COCO metrics, computed by hotcoco with the definitions of pycocotools; the tests compare both on random data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..structures import Instances
from .thresholds import best_thresholds

if TYPE_CHECKING:
    from hotcoco import COCOeval

COCO_LIMIT = 100
"""Maximum number of detections per image and class in COCO's metrics."""
# The 12 metrics: averaged quantity, IoU (None: mean over 0.50 to 0.95), object size, and detections per image and class
# (None: `COCO_LIMIT`, or the larger limit of the detector).
_DEFINITIONS = {
    "AP": ("precision", None, "all", None),
    "AP50": ("precision", 0.50, "all", None),
    "AP75": ("precision", 0.75, "all", None),
    "APs": ("precision", None, "small", None),
    "APm": ("precision", None, "medium", None),
    "APl": ("precision", None, "large", None),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", None),
    "ARm": ("recall", None, "medium", None),
    "ARl": ("recall", None, "large", None),
}
METRICS = tuple(_DEFINITIONS)
"""Names of the 12 COCO metrics of boxes."""
DETAILS = tuple(name for name, (_, _, size, limit) in _DEFINITIONS.items() if size != "all" or limit in (1, 10))
"""The metrics of a single object size or of at most 10 detections."""


class CocoMetrics(NamedTuple):
    """Result of `coco_metrics`.

    Attributes:
        overall: the 12 metrics by name (`METRICS`), in 0..1; NaN if the ground truth has no object that they apply to.
        per_class: the same 12 metrics for every class name.
        thresholds: the score threshold with the highest F1 at IoU 0.5, by class name. Classes without a correct
            detection are missing.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    thresholds: dict[str, float]


def coco_metrics(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], *, max_detections: int = COCO_LIMIT
) -> CocoMetrics:
    """Compute average precision and recall as COCO defines them.

    COCO counts at most 100 detections per image and class. With a larger `max_detections`, this limit applies to all
    metrics but AR1, AR10 and AR100.

    Args:
        ground_truth: COCO annotations, a dict with `images`, `annotations` and `categories`; crowds are ignore regions.
        detections: detections in the COCO result format, see `to_coco_results`.
        max_detections: maximum number of detections per image and class; values below 100 count as 100, except that 0
            or less means no limit.
    """
    run = compare(ground_truth, detections, max_detections=max_detections)
    assert run.eval is not None
    tables = {kind: np.asarray(run.eval[kind]) for kind in ("precision", "recall")}

    def metric(name: str, category: slice) -> float:
        kind, iou, size, limit = _DEFINITIONS[name]
        rows = slice(None) if iou is None else np.isclose(run.params.iou_thrs, iou)
        values = tables[kind][rows]  # [IoU, (recall,) class, size, limit]
        values = values[
            ...,
            category,
            run.params.area_rng_lbl.index(size),
            run.params.max_dets.index(limit or max(run.params.max_dets)),
        ]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else float("nan")

    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    boxes = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd"))
    thresholds = best_thresholds(detections, match_states(run, len(detections)), boxes)
    return CocoMetrics(
        overall={name: metric(name, slice(None)) for name in METRICS},
        per_class={
            names[category_id]: {name: metric(name, slice(k, k + 1)) for name in METRICS}
            for k, category_id in enumerate(run.params.cat_ids)
        },
        thresholds={name: thresholds[i] for i, name in names.items() if i in thresholds},
    )


def compare(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], *, max_detections: int = COCO_LIMIT
) -> COCOeval:
    """Match detections to the ground truth, all as in `coco_metrics`, and accumulate the results."""
    from hotcoco import COCO, COCOeval

    truth = COCO(ground_truth)
    run = COCOeval(truth, truth.load_res(detections), "bbox")
    if max_detections <= 0:
        max_detections = max(Counter(d["image_id"] for d in detections).values(), default=COCO_LIMIT)
    if max_detections > COCO_LIMIT:
        run.params.max_dets = [*run.params.max_dets, max_detections]
    run.evaluate()
    run.accumulate()
    return run


def match_states(run: COCOeval, count: int) -> np.ndarray:
    """Classify every detection as correct, wrong or ignored at IoU 0.5.

    Args:
        run: result of `compare`.
        count: number of detections.

    Returns:
        int8 [count]: 1 for a detection matched to an object of its class, 0 for an unmatched one, -1 for an ignored one
        (in a crowd, or beyond the limit of `compare` for its image and class).
    """
    states = np.full(count, -1, dtype=np.int8)
    for number, state in run.image_diagnostics(iou_thr=0.5)["dt_status"].items():  # keys: positions, counted from 1
        states[number - 1] = state == "tp"
    return states


def to_coco_results(instances: Instances, *, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the detections of an image to the COCO result format: `image_id`, `category_id`, `bbox` (XYWH), `score`.

    Args:
        instances: detections with continuous boxes in pixels of the original image.
        image_id: id of the image in the annotations.
        category_ids: [K], category id of every label.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in zip(
            instances.boxes.tolist(), instances.labels.tolist(), instances.scores.tolist(), strict=True
        )
    ]
