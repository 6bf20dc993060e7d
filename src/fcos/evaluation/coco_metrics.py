"""COCO metrics of boxes, masks and keypoints, computed by hotcoco with the definitions of pycocotools.

The tests compare both on random data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from ..errors import ConfigError
from ..masks import Masks, decode
from ..structures import Instances
from .thresholds import best_thresholds

if TYPE_CHECKING:
    from hotcoco import COCOeval

    from ..data.dataset import Annotations

Output = Literal["boxes", "masks", "keypoints"]

COCO_LIMIT = 100
"""Maximum number of detections per image and class in COCO's metrics of boxes and masks."""
KEYPOINT_LIMIT = 20
"""Maximum number of detections per image and class in COCO's metrics of keypoints."""
# The metrics: averaged quantity, IoU (None: mean over 0.50 to 0.95), object size, and detections per image and class
# (None: `COCO_LIMIT`, or the larger limit of the detector; `KEYPOINT_LIMIT` for keypoints).
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
# COCO defines no small persons with keypoints.
_KEYPOINT_DEFINITIONS = {name: _DEFINITIONS[name] for name in ("AP", "AP50", "AP75", "APm", "APl")} | {
    "AR": ("recall", None, "all", None),
    "AR50": ("recall", 0.50, "all", None),
    "AR75": ("recall", 0.75, "all", None),
    "ARm": ("recall", None, "medium", None),
    "ARl": ("recall", None, "large", None),
}


class _Kind(NamedTuple):
    """Output of a detector: hotcoco's name for it, the suffix of its metrics, and their definitions."""

    iou_type: Literal["bbox", "segm", "keypoints"]
    suffix: str
    definitions: dict[str, tuple[str, float | None, str, int | None]]


_KINDS: dict[Output, _Kind] = {
    "boxes": _Kind("bbox", "", _DEFINITIONS),
    "masks": _Kind("segm", "_mask", _DEFINITIONS),
    "keypoints": _Kind("keypoints", "_keypoints", _KEYPOINT_DEFINITIONS),
}
METRICS = tuple(_DEFINITIONS)
"""Names of the 12 COCO metrics of boxes."""
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Standard deviations of annotators for COCO's 17 keypoints of persons, as fractions of the object's size."""
_MEAN_SIGMA = 0.067  # of COCO's


class CocoMetrics(NamedTuple):
    """Result of `coco_metrics`.

    Attributes:
        overall: the metrics by name (`metrics_of`), in 0..1; NaN if the ground truth has no object that they apply to.
        per_class: the same metrics for every class name.
        thresholds: the score threshold with the highest F1 at IoU 0.5 of the boxes, by class name. Classes without a
            correct detection are missing.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    thresholds: dict[str, float]


def metrics_of(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Return the names of the metrics of outputs: AP, AP50, ... of boxes, AP_mask of masks, AP_keypoints."""
    return tuple(f"{name}{_KINDS[output].suffix}" for output in outputs for name in _KINDS[output].definitions)


def sigmas_of(count: int, given: Sequence[float] | None = None) -> tuple[float, ...]:
    """Return the standard deviations of `count` keypoints: the given ones, else COCO's, if its 17, else their mean.

    Raises:
        ConfigError: another number than `count` is given.
    """
    if given is not None:
        if len(given) != count:
            raise ConfigError(f"eval.keypoint_sigmas: expected {count} numbers, one per keypoint, found {len(given)}")
        return tuple(given)
    return COCO_SIGMAS if count == len(COCO_SIGMAS) else (_MEAN_SIGMA,) * count


def coco_metrics(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    *,
    max_detections: int = COCO_LIMIT,
    outputs: Sequence[Output] = ("boxes",),
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> CocoMetrics:
    """Compute average precision and recall as COCO defines them.

    COCO counts at most 100 detections per image and class, or 20 with keypoints. With a larger `max_detections`, this
    limit applies to all metrics of boxes and masks but AR1, AR10 and AR100.

    Args:
        ground_truth: COCO annotations, a dict with `images`, `annotations` and `categories`; crowds are ignore regions.
        detections: detections in the COCO result format, see `to_coco_results`.
        max_detections: maximum number of detections per image and class; values below 100 count as 100, except that 0
            or less means no limit.
        outputs: outputs to evaluate, boxes first.
        sigmas: standard deviation of every keypoint, as a fraction of the object's size.
    """
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    overall: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in names.values()}
    thresholds: dict[int, float] = {}
    for output in outputs:
        run = compare(ground_truth, detections, max_detections=max_detections, output=output, sigmas=sigmas)
        of_all, of_each = _metrics(run, output)
        overall |= of_all
        for category_id, metrics in zip(run.params.cat_ids, of_each, strict=True):
            per_class[names[category_id]] |= metrics
        if output == "boxes":
            counts = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd"))
            thresholds = best_thresholds(detections, match_states(run, len(detections)), counts)
    return CocoMetrics(overall, per_class, {name: thresholds[i] for i, name in names.items() if i in thresholds})


def _metrics(run: COCOeval, output: Output) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the metrics of one output by name with suffix, over all categories and for each of them, in their order.

    `run.eval` is read once, because it copies all tables. `_recall` replaces them.
    """
    tables, sizes = run.eval, run.params.area_rng_lbl
    assert tables is not None
    _, suffix, definitions = _KINDS[output]
    recall = _recall(run, sorted({limit for *_, limit in definitions.values() if limit}))
    overall: dict[str, float] = {}
    per_category: list[dict[str, float]] = [{} for _ in run.params.cat_ids]
    for name, (table, iou, size, limit) in definitions.items():
        rows = slice(None) if iou is None else np.isclose(run.params.iou_thrs, iou)
        values = recall[limit] if limit else np.asarray(tables[table])[..., sizes.index(size), 0]
        values = np.moveaxis(values[rows], -1, 0).reshape(len(per_category), -1)  # from [IoU, (recall,) category]
        is_defined = (values > -1).all(axis=1)  # a category without objects is -1 in all rows
        means = np.where(is_defined, values.mean(axis=1), np.nan).tolist()
        overall[f"{name}{suffix}"] = float(values[is_defined].mean()) if is_defined.any() else float("nan")
        for metrics, mean in zip(per_category, means, strict=True):
            metrics[f"{name}{suffix}"] = mean
    return overall, per_category


def _recall(run: COCOeval, limits: list[int]) -> dict[int, np.ndarray]:
    """Return the recall of objects of all sizes, [IoU, category], by the number of detections that count.

    By default, hotcoco also accumulates the precision for every size and number of detections, which takes almost a
    second with 1,200 classes.
    """
    if not limits:
        return {}
    params = run.params
    before = params.max_dets, params.area_rng, params.area_rng_lbl, params.rec_thrs
    params.max_dets, params.area_rng, params.area_rng_lbl, params.rec_thrs = limits, before[1][:1], before[2][:1], [0.0]
    run.accumulate()
    params.max_dets, params.area_rng, params.area_rng_lbl, params.rec_thrs = before
    assert run.eval is not None
    return dict(zip(limits, np.moveaxis(np.asarray(run.eval["recall"])[:, :, 0], -1, 0), strict=True))


def compare(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    *,
    max_detections: int = COCO_LIMIT,
    output: Output = "boxes",
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> COCOeval:
    """Match detections to the ground truth by one output, all as in `coco_metrics`, and accumulate the results.

    The tables of the result are for one limit of detections, so their last axis has length 1.
    """
    from hotcoco import COCO, COCOeval

    key = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}[output]
    if output != "boxes":  # with a box, the size of a detection would be that of its box; pycocotools does the same
        columns = ("image_id", "category_id", "score", key)
        detections = [{name: d[name] for name in columns} for d in detections if key in d]
    truth = COCO(ground_truth)
    run = COCOeval(truth, truth.load_res(detections), _KINDS[output].iou_type)
    if output == "keypoints":
        run.params.kpt_oks_sigmas = list(sigmas)
    elif max_detections <= 0:
        max_detections = max(Counter(d["image_id"] for d in detections).values(), default=COCO_LIMIT)
    if output != "keypoints":
        run.params.max_dets = [max(max_detections, COCO_LIMIT)]
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
    found: dict[int, str] = run.image_diagnostics(iou_thr=0.5)["dt_status"]  # by position, counted from 1
    states[np.array(list(found), dtype=np.int64) - 1] = [state == "tp" for state in found.values()]
    return states


def to_coco_results(instances: Instances, *, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the detections of an image to the COCO result format.

    Every detection has `image_id`, `category_id`, `bbox` (XYWH) and `score`. If the detector has masks or keypoints, it
    also has `segmentation` (RLE) and `keypoints` (x1, y1, score1, x2, ...).

    Args:
        instances: detections with continuous boxes in pixels of the original image.
        image_id: id of the image in the annotations.
        category_ids: [K], category id of every label.
    """
    results = [
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
    for key, values in instances.shapes_in_coco_form().items():
        for result, value in zip(results, values, strict=True):
            result[key] = value
    return results


def to_instances(detections: list[dict[str, Any]], annotations: Annotations, i: int) -> Instances:
    """Convert detections on an image, in the COCO result format; `to_coco_results` is the inverse.

    Args:
        detections: detections, see `Evaluation.detections`.
        annotations: annotations of the split.
        i: position of the image in `annotations`.
    """
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [annotations.category_ids.index(d["category_id"]) for d in detections]
    height, width = annotations.sizes[i].tolist()
    codes = [d["segmentation"] for d in detections if "segmentation" in d]
    keypoints = [d["keypoints"] for d in detections if "keypoints" in d]
    return Instances(
        boxes,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor([float(d["score"]) for d in detections]),
        (height, width),
        annotations.class_names,
        keypoints=torch.tensor(keypoints).reshape(len(keypoints), -1, 3) if keypoints else None,
        polygons=Masks.from_bitmaps(decode([code])[0] for code in codes) if codes else None,  # one bitmap at a time
        keypoint_layout=annotations.keypoint_layout,
    )
