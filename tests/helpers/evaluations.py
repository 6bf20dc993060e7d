"""Random ground truth and detections, and their F1 according to pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Task = tuple[dict[str, Any], list[dict[str, Any]]]
"""COCO ground truth, and detections in COCO's result format."""


def random_task(seed: int, *, images: int = 12, classes: int = 4) -> Task:
    """Return ground truth with crowds, empty images and an empty class, and nearby detections with tied scores."""
    rng = np.random.default_rng(seed)
    image_rows = [{"id": 7 * i + 3, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(images)]
    categories = [{"id": 90 - 13 * c, "name": f"class {c}"} for c in range(classes)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in image_rows[:-2]:
        for _ in range(rng.integers(0, 8)):
            corner = rng.uniform(0, 300, 2)
            side = np.exp(rng.uniform(np.log(4), np.log(170), 2))
            category = categories[rng.integers(classes - 1)]["id"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [*corner.tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 4)):
                wrong = rng.random() < 0.2
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": categories[rng.integers(classes)]["id"] if wrong else category,
                        "bbox": [*(corner + rng.normal(0, 3, 2)).tolist(), *(side * rng.uniform(0.85, 1.15)).tolist()],
                        "score": round(rng.random(), 2),
                    }
                )
    return {"images": image_rows, "annotations": annotations, "categories": categories}, detections


def f1_of_classes(task: Task, threshold: float, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Compute the F1 of each class for detections with score >= threshold, from pycocotools' matches at IoU 0.5."""
    ground_truth, detections = task
    truth: Any = COCO()
    truth.dataset = ground_truth
    truth.createIndex()
    kept = [dict(d) for d in detections if d["score"] >= threshold]
    run = COCOeval(truth, truth.loadRes(kept) if kept else COCO(), "bbox")
    run.params.iouThrs, run.params.areaRng, run.params.maxDets = np.array([0.5]), [[0, 1e10]], [100]
    run.evaluate()
    capsys.readouterr()
    scores = {}
    for category in ground_truth["categories"]:
        images = [e for e in run.evalImgs if e is not None and e["category_id"] == category["id"]]
        counted = sum(int((~e["dtIgnore"][0].astype(bool)).sum()) for e in images)
        found = sum(int(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0].astype(bool)).sum()) for e in images)
        objects = sum(int((1 - np.array(e["gtIgnore"])).sum()) for e in images)
        scores[category["name"]] = 2 * found / (counted + objects) if counted + objects else 0.0
    return scores
