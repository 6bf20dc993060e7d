"""The COCO figures. hotcoco computes them as pycocotools does; the tests compare the two on random data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..structures import Instances
from .thresholds import best_thresholds

if TYPE_CHECKING:
    from hotcoco import COCOeval

# The 12 figures: what is averaged, IoU (None: 0.50 to 0.95), object size, detections per image.
_FIGURES = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.50, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}
METRICS = tuple(_FIGURES)
"""The names of the COCO figures of boxes."""
DETAILS = tuple(name for name, (_, _, size, limit) in _FIGURES.items() if size != "all" or limit != 100)
"""Those of one object size, or of fewer detections than 100."""


class CocoMetrics(NamedTuple):
    """What `coco_metrics` computes.

    Attributes:
        overall: the 12 figures by name (`METRICS`), in 0..1; NaN where the ground truth has no such object.
        per_class: the same 12 figures for every class name.
        thresholds: the score threshold of best F1 at IoU 0.5, by class name; without the classes of which no object was
            found.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    thresholds: dict[str, float]


def coco_metrics(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> CocoMetrics:
    """Average precision and recall of detections, as COCO defines them (100 detections per image at most).

    Args:
        ground_truth: a COCO annotation tree with `images`, `annotations` and `categories`; crowds are ignored regions.
        detections: COCO results, see `to_coco_results`.
    """
    run = compare(ground_truth, detections)
    assert run.eval is not None
    tables = {kind: np.asarray(run.eval[kind]) for kind in ("precision", "recall")}

    def figure(name: str, category: slice) -> float:
        kind, iou, size, limit = _FIGURES[name]
        rows = slice(None) if iou is None else np.isclose(run.params.iou_thrs, iou)
        values = tables[kind][rows]  # [IoU, (recall,) class, size, limit]
        values = values[..., category, run.params.area_rng_lbl.index(size), run.params.max_dets.index(limit)]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else float("nan")

    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    boxes = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd"))
    thresholds = best_thresholds(detections, match_states(run, len(detections)), boxes)
    return CocoMetrics(
        overall={name: figure(name, slice(None)) for name in METRICS},
        per_class={
            names[category_id]: {name: figure(name, slice(k, k + 1)) for name in METRICS}
            for k, category_id in enumerate(run.params.cat_ids)
        },
        thresholds={name: thresholds[i] for i, name in names.items() if i in thresholds},
    )


def compare(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> COCOeval:
    """Match detections with the ground truth, both as in `coco_metrics`, and accumulate the matches."""
    from hotcoco import COCO, COCOeval

    truth = COCO(ground_truth)
    run = COCOeval(truth, truth.load_res(detections), "bbox")
    run.evaluate()
    run.accumulate()
    return run


def match_states(run: COCOeval, count: int) -> np.ndarray:
    """What became of every detection at IoU 0.5.

    Args:
        run: see `compare`.
        count: of the detections.

    Returns:
        int8 [count]: 1 matched to an object of its class, 0 not, -1 ignored: in a crowd, or after the first 100 of an
        image and class.
    """
    states = np.full(count, -1, dtype=np.int8)
    for number, state in run.image_diagnostics(iou_thr=0.5)["dt_status"].items():  # numbered from 1 in their order
        states[number - 1] = state == "tp"
    return states


def to_coco_results(instances: Instances, *, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of an image in COCO's result format: `image_id`, `category_id`, `bbox` XYWH and `score`.

    Args:
        instances: continuous boxes in pixels of the original image.
        image_id: the image's id in the annotations.
        category_ids: [K], the category id of every label.
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
