"""The limit of detections in the evaluation follows `model.max_detections`, and images beyond it cause a warning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flat_annotations import annotations_of

from fcos.config import Config
from fcos.evaluation.coco_metrics import coco_metrics, compare, match_states
from fcos.evaluation.evaluate import warn_of_crowded_images

NUM_OBJECTS = 250


def crowded_task() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an image with many objects, and a correct detection of each."""
    boxes = [[20 * (i % 50), 20 * (i // 50), 15, 15] for i in range(NUM_OBJECTS)]
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 1000, "height": 1000}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 225, "iscrowd": 0}
            for i, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)]
    return truth, found


@pytest.mark.parametrize("limit", [NUM_OBJECTS, 1000, 0, -1])
def test_all_detections_count_with_a_larger_limit(limit: int) -> None:
    truth, found = crowded_task()
    metrics, _, thresholds = coco_metrics(truth, found, max_detections=limit)
    assert thresholds == pytest.approx({"cell": found[-1]["score"] / 2})  # between the lowest score and 0
    assert {name: metrics[name] for name in ("AP", "AP50", "APs", "ARs")} == pytest.approx(
        dict.fromkeys(("AP", "AP50", "APs", "ARs"), 1.0)
    )
    assert (metrics["AR1"], metrics["AR10"], metrics["AR100"]) == pytest.approx((1 / 250, 10 / 250, 100 / 250))


@pytest.mark.parametrize("limit", [1, 50, 100])
def test_cocos_limit_stays_with_a_smaller_limit(limit: int) -> None:
    """A detector with fewer detections per image does not have more than these, so no other limit is needed."""
    task = crowded_task()
    assert repr(coco_metrics(*task, max_detections=limit)) == repr(coco_metrics(*task))
    assert coco_metrics(*task).overall["AP"] == pytest.approx(41 / 101)  # recalls 0, 0.01, ..., 0.40


def test_no_limit_without_detections_is_the_usual_limit() -> None:
    truth, _ = crowded_task()
    assert repr(coco_metrics(truth, [], max_detections=0)) == repr(coco_metrics(truth, []))


def test_detections_beyond_the_first_hundred_are_judged_with_a_larger_limit() -> None:
    truth, found = crowded_task()
    run = compare(truth, found, max_detections=NUM_OBJECTS)
    assert match_states(run, NUM_OBJECTS).tolist() == [1] * NUM_OBJECTS
    assert run.eval is not None
    assert np.asarray(run.eval["recall"])[0, 0, 0].tolist() == [1.0]


@pytest.mark.parametrize(("limit", "warns"), [(20, True), (30, False), (0, False), (100, False)])
def test_images_with_more_objects_than_detections_cause_a_warning(
    limit: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [(5.0 * k, 0, 5.0 * k + 4, 4, 0, int(k >= 30)) for k in range(40)]  # ten of them are crowds
    config = Config.model_validate({"model": {"max_detections": limit}})
    warn_of_crowded_images(annotations_of([boxes, boxes[:3]], [(300, 300)] * 2), config)
    assert bool(caplog.messages) == warns
    if warns:
        assert "1 image with more objects than model.max_detections=20, up to 30" in caplog.messages[0]
        assert "set model.max_detections=30" in caplog.messages[0]


def test_data_without_a_crowded_image_or_without_val_causes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_crowded_images(None, Config())
    warn_of_crowded_images(annotations_of([[]], [(300, 300)]), Config())
    assert caplog.messages == []
