"""Average recall of proposals, and the evaluation of RPN, which does not distinguish classes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flat_annotations import annotations_of
from tiny_data import coco_tree, write_coco

import fcos
from fcos.errors import ConfigError
from fcos.evaluation.coco_metrics import METRICS
from fcos.evaluation.evaluate import detection_limit, metric_names, warn_of_crowded_images
from fcos.evaluation.proposal_recall import PROPOSAL_METRICS, proposal_recall
from fcos.evaluation.results import headline_metrics, load_evaluation
from fcos.recipes import load_config

SIDES = (20, 50, 100)  # small, medium, large


def annotated(*boxes: Sequence[float]) -> Any:
    """Return two images of which the first has these boxes (x1, y1, x2, y2, label[, crowd])."""
    annotations = annotations_of([boxes, []], [(400, 400)] * 2)
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    return replace(annotations, areas=sides.prod(axis=1))


def proposal(box: Sequence[float], score: float, image: int = 0) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def test_recall_is_the_fraction_of_objects_found_at_every_iou() -> None:
    objects = annotated(*[(0, 100 * i, side, 100 * i + side, i) for i, side in enumerate(SIDES)])
    proposals = [proposal((0, 0, 20, 20), 0.9), proposal((0, 100, 50, 136), 0.1)]  # IoU 1 and 0.72, none for the third
    recall = proposal_recall(objects, proposals)
    assert tuple(recall) == PROPOSAL_METRICS
    assert recall["AR100_proposals"] == pytest.approx((1 + 0.5) / 3)
    expected = {"s": 1.0, "m": 0.5, "l": 0.0}
    for size, value in expected.items():
        assert recall[f"AR{size}100_proposals"] == recall[f"AR{size}1000_proposals"] == pytest.approx(value)


def test_limits_keep_the_proposals_with_the_highest_scores() -> None:
    objects = annotated((0, 0, 20, 20, 0))
    wrong = [proposal((200, 200, 220, 220), 0.5) for _ in range(150)]
    recall = proposal_recall(objects, [*wrong, proposal((0, 0, 20, 20), 0.1)])
    assert (recall["AR10_proposals"], recall["AR100_proposals"], recall["AR1000_proposals"]) == (0, 0, 1)
    recall = proposal_recall(objects, [*wrong, proposal((0, 0, 20, 20), 0.9)])
    assert recall["AR10_proposals"] == 1


def test_every_proposal_finds_one_object_the_best_pairs_first() -> None:
    objects = annotated((0, 0, 20, 20, 0), (0, 0, 20, 16, 1))
    # The only proposal has IoU 1 with the first object and 0.8 with the second.
    assert proposal_recall(objects, [proposal((0, 0, 20, 20), 0.9)])["AR100_proposals"] == pytest.approx(0.5)
    # The proposal with the higher score has IoU 0.8 with the first object; the other one is the second object.
    pair = [proposal((0, 0, 16, 20), 0.9), proposal((0, 0, 20, 16), 0.1)]
    assert proposal_recall(objects, pair)["AR100_proposals"] == pytest.approx((0.7 + 1) / 2)


def test_crowds_and_images_without_objects_do_not_count() -> None:
    objects = annotated((0, 0, 20, 20, 0), (100, 100, 200, 200, 0, 1))
    proposals = [proposal((0, 0, 20, 20), 0.9), proposal((0, 0, 20, 20), 0.9, image=1)]
    recall = proposal_recall(objects, proposals)
    assert recall["AR100_proposals"] == recall["ARs100_proposals"] == 1
    assert math.isnan(recall["ARl100_proposals"])


def test_recall_without_proposals_is_zero_and_without_objects_undefined() -> None:
    assert proposal_recall(annotated((0, 0, 20, 20, 0)), [])["AR1000_proposals"] == 0
    assert all(map(math.isnan, proposal_recall(annotated(), [proposal((0, 0, 9, 9), 0.5)]).values()))


def test_one_class_keeps_the_boxes_and_merges_the_classes() -> None:
    objects = annotated((0, 0, 20, 20, 2), (5, 5, 30, 30, 0, 1)).as_one_class()
    assert (objects.class_names, objects.category_ids, objects.labels.tolist()) == (("object",), (1,), [0, 0])
    assert objects.boxes_per_class().tolist() == [1]
    assert [c["name"] for c in objects.to_coco()["categories"]] == ["object"]
    assert np.array_equal(objects.boxes, annotated((0, 0, 20, 20, 2), (5, 5, 30, 30, 0, 1)).boxes)


# ------------------------------------------------------------------------------------------------------------------ RPN


OPTIONS = """
    model.name=rpn model.backbone.name=mobilenet_v2 model.backbone.weights=null model.fpn.channels=32
    model.proposals.max_proposals=200 data.short_side=64 data.max_side=96 data.workers=0
    train.batch_size=2 train.iterations=2 train.warmup=none train.best_metric=AR100_proposals device=cpu
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an RPN on images with objects of two classes."""
    folder = tmp_path_factory.mktemp("rpn")
    for split in ("train", "val"):
        write_coco(folder / "data", split=split)
    (folder / "rpn.yaml").write_text("{}")
    fcos.train(folder / "rpn.yaml", f"data={folder / 'data'}", f"output_dir={folder / 'run'}", *OPTIONS.split())
    return folder / "run"


def test_rpn_is_evaluated_without_classes(run: Path) -> None:
    saved = json.loads((run / "val/metrics.json").read_text())
    assert set(saved["metrics"]) == {*METRICS, *PROPOSAL_METRICS}
    assert saved["per_class"] == {"object": saved["metrics"]}
    assert saved["boxes_per_class"] == {"object": len(coco_tree()["annotations"])}
    detections = json.loads((run / "val/detections.json").read_text())
    assert {d["category_id"] for d in detections} == {1}
    assert 100 < max(Counter(d["image_id"] for d in detections).values()) <= 200
    page = (run / "report.html").read_text()
    assert "AR1000_proposals" in page
    assert "each matched with the object that it overlaps most" in page


def test_evaluation_of_rpn_on_other_data_ignores_its_classes(run: Path, tmp_path: Path) -> None:
    tree = coco_tree()
    for category in tree["categories"]:
        category["name"] = f"another {category['name']}"
    write_coco(tmp_path, tree, split="val")
    saved, found = load_evaluation(run / "val"), fcos.evaluate(run, f"data={tmp_path}")
    assert saved is not None
    assert found.metrics == pytest.approx(saved.metrics, abs=1e-6, nan_ok=True)


def test_predictions_of_rpn_have_no_name_of_a_class(run: Path) -> None:
    detector = fcos.load(run / "weights/best.pt")
    assert detector.class_names == ("object",)
    found = detector.predict(np.zeros((64, 64, 3), dtype=np.uint8), threshold=0.0)
    assert len(found) > 0
    assert set(found.names) == {"object"}


def test_more_objects_than_proposals_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(None, ["model.name=rpn", "model.proposals.max_proposals=2"])
    assert detection_limit(config) == 2
    warn_of_crowded_images(annotated(*[(0, 0, 9, 9, 0)] * 3), config)
    assert "1 image with more objects than model.proposals.max_proposals=2, up to 3: AP cannot reach 1" in caplog.text
    assert "set model.proposals.max_proposals=3" in caplog.text


def test_rpn_has_no_number_of_classes() -> None:
    with pytest.raises(
        ConfigError, match="num_classes must be 1, because an RPN does not distinguish classes, found 3"
    ):
        load_config(None, ["model.name=rpn", "model.num_classes=3"])


def test_metrics_of_proposals_are_those_of_rpn_only() -> None:
    rpn, fcos_config = load_config(None, ["model.name=rpn"]), load_config(None, [])
    assert metric_names(rpn) == (*METRICS, *PROPOSAL_METRICS)
    assert metric_names(fcos_config) == METRICS
    shown = ["AP", "AP50", "AP75", "AR100", "AR100_proposals", "AR1000_proposals"]
    assert headline_metrics(metric_names(rpn), "AP") == shown
