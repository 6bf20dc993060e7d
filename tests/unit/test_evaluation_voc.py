"""Pascal VOC's metrics of annotations and detections in COCO form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from flat_annotations import annotations_of

from fcos.config import Config
from fcos.evaluation.evaluate import metric_names
from fcos.evaluation.voc_metrics import voc_metrics

OBJECTS = annotations_of(
    [[(0, 0, 10, 10, 0), (20, 20, 30, 30, 0)], [(0, 0, 10, 10, 0, 1), (5, 5, 15, 15, 1)]], [(40, 40)] * 2
)


def detection(image: int, box: Sequence[float], score: float, category: int = 1) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def test_precision_counts_correct_wrong_and_repeated_detections() -> None:
    detections = [
        detection(0, (0, 0, 10, 10), 0.9),
        detection(0, (0, 0, 10, 9), 0.8),  # the same object again
        detection(0, (20, 20, 30, 30), 0.7),
    ]
    overall, per_class = voc_metrics(OBJECTS, detections)
    # Recall 0.5 at precision 1, recall 1 at precision 2/3.
    assert per_class["a"]["AP50_voc10"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert per_class["a"]["AP50_voc07"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert per_class["b"] == {"AP50_voc07": 0, "AP50_voc10": 0}
    assert all(map(math.isnan, per_class["c"].values()))
    assert overall["AP50_voc10"] == pytest.approx(per_class["a"]["AP50_voc10"] / 2)


def test_difficult_objects_are_neither_found_nor_missed() -> None:
    perfect = [detection(0, (0, 0, 10, 10), 0.9), detection(0, (20, 20, 30, 30), 0.8)]
    with_difficult = [*perfect, detection(1, (0, 0, 10, 10), 0.95), detection(1, (0, 0, 10, 10), 0.95)]
    for detections in (perfect, with_difficult):
        assert voc_metrics(OBJECTS, detections)[1]["a"] == {"AP50_voc07": 1, "AP50_voc10": 1}


def test_extra_pixel_enlarges_all_boxes() -> None:
    narrow = [detection(1, (5, 5, 9.8, 15), 0.9, 2)]  # IoU 0.48, or 5.8 / 11 with the additional pixel
    assert voc_metrics(OBJECTS, narrow)[1]["b"]["AP50_voc10"] == 0
    assert voc_metrics(OBJECTS, narrow, extra_pixel=True)[1]["b"]["AP50_voc10"] == 1


def test_metrics_without_detections_or_objects() -> None:
    assert voc_metrics(OBJECTS, [])[0] == {"AP50_voc07": 0, "AP50_voc10": 0}
    nothing = annotations_of([[]], [(40, 40)])
    assert all(map(math.isnan, voc_metrics(nothing, [detection(0, (0, 0, 5, 5), 0.5)])[0].values()))


def test_option_adds_the_metrics() -> None:
    assert metric_names(Config.model_validate({"eval": {"voc_metrics": True}}))[-2:] == ("AP50_voc07", "AP50_voc10")
    assert "AP50_voc07" not in metric_names(Config())
