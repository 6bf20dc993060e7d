"""COCO metrics against pycocotools, the reference implementation."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from evaluations import random_task
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos.evaluation.coco_metrics import METRICS, coco_metrics, to_coco_results
from fcos.structures import Instances


def run_pycocotools(ground_truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(detections), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@pytest.mark.parametrize("seed", range(10))
def test_metrics_match_pycocotools(seed):
    ground_truth, detections = random_task(seed)
    expected = run_pycocotools(ground_truth, detections).stats
    found = coco_metrics(ground_truth, detections).overall
    assert list(found) == list(METRICS)
    # Measured: the tables behind the metrics are bit-identical; only the order of summation may differ.
    np.testing.assert_allclose(
        list(found.values()), np.where(expected == -1, np.nan, expected), rtol=0, atol=1e-12, equal_nan=True
    )


def test_per_class_metrics_match_pycocotools_on_that_class():
    ground_truth, detections = random_task(3)
    found = coco_metrics(ground_truth, detections).per_class
    for category in ground_truth["categories"]:
        alone = {
            **ground_truth,
            "categories": [category],
            "annotations": [a for a in ground_truth["annotations"] if a["category_id"] == category["id"]],
        }
        mine = [d for d in detections if d["category_id"] == category["id"]]
        expected = run_pycocotools(alone, mine).stats
        np.testing.assert_allclose(
            list(found[category["name"]].values()),
            np.where(expected == -1, np.nan, expected),
            rtol=0,
            atol=1e-12,
            equal_nan=True,
        )


def test_per_class_metrics_of_many_classes_match_pycocotools():
    """Most classes lack objects of some size, some classes have no object at all."""
    ground_truth, detections = random_task(5, images=60, classes=90)
    for row in (*ground_truth["annotations"], *detections):
        row["category_id"] += 2000  # ids must not be negative
    for category in ground_truth["categories"]:
        category["id"] += 2000
    run = run_pycocotools(ground_truth, detections)
    found = coco_metrics(ground_truth, detections).per_class
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for k, category in enumerate(run.params.catIds):
        for name, area in (("AP", 0), ("APs", 1), ("APm", 2), ("APl", 3)):
            table = run.eval["precision"][:, :, k, area, 2]
            expected = table.mean() if (table > -1).all() else np.nan
            np.testing.assert_allclose(found[names[category]][name], expected, rtol=0, atol=1e-12)
        expected = run.eval["recall"][:, k, 0, 2].mean() if run.eval["recall"][0, k, 0, 2] > -1 else np.nan
        np.testing.assert_allclose(found[names[category]]["AR100"], expected, rtol=0, atol=1e-12)
    assert 0 < sum(math.isnan(metrics["AP"]) for metrics in found.values()) < 90


def test_metrics_without_detections_are_zero():
    ground_truth, _ = random_task(1)
    metrics = coco_metrics(ground_truth, [])
    assert [metrics.overall[name] for name in ("AP", "AP50", "AR100")] == [0.0, 0.0, 0.0]


def test_metrics_without_objects_are_nan():
    ground_truth, detections = random_task(1)
    ground_truth["annotations"] = []
    metrics = coco_metrics(ground_truth, detections)
    assert all(math.isnan(value) for value in metrics.overall.values())


def test_class_without_objects_is_nan_and_excluded_from_the_mean():
    ground_truth, detections = random_task(1)
    metrics = coco_metrics(ground_truth, detections)
    assert math.isnan(metrics.per_class["class 3"]["AP"])
    others = [metrics.per_class[f"class {c}"]["AP"] for c in range(3)]
    assert metrics.overall["AP"] == pytest.approx(np.mean(others))


def test_detection_inside_a_crowd_is_ignored():
    ground_truth, _ = random_task(1)
    box = {"image_id": 3, "category_id": 90, "iscrowd": 0}
    ground_truth["annotations"] = [
        {**box, "id": 1, "bbox": [10, 10, 50, 50], "area": 2500},
        {**box, "id": 2, "bbox": [200, 200, 100, 100], "area": 10000, "iscrowd": 1},
    ]
    right = {"image_id": 3, "category_id": 90, "bbox": [10, 10, 50, 50], "score": 0.5}
    in_crowd = {**right, "bbox": [210, 210, 40, 40], "score": 0.9}
    assert coco_metrics(ground_truth, [right, in_crowd]).overall["AP"] == pytest.approx(1.0)


def test_coco_metrics_prints_nothing(capfd):
    ground_truth, detections = random_task(1)
    coco_metrics(ground_truth, detections)
    assert capfd.readouterr() == ("", "")


def test_coco_results_have_original_category_ids_and_xywh_boxes():
    instances = Instances(
        boxes=torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
        labels=torch.tensor([1]),
        scores=torch.tensor([0.5]),
        size=(50, 60),
    )
    assert to_coco_results(instances, image_id=42, category_ids=(90, 7)) == [
        {"image_id": 42, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5}
    ]
