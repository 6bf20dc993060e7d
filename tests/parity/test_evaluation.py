"""Conversion of detections to COCO results, and the metrics, with the original's inclusive boxes."""

import json

import pytest
import torch

from fcos.evaluation.coco_metrics import coco_metrics, to_coco_results
from fcos.structures import Instances


@pytest.fixture(scope="module")
def recorded(goldens):
    return json.loads((goldens / "units" / "coco_dataset.json").read_text())


def results(recorded, predictions):
    """Convert detections to COCO results as `evaluate` does; recorded labels start at 1 because 0 is background."""
    data = recorded["coco"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    category_ids = [category["id"] for category in data["categories"]]
    found = []
    for image_id, prediction in zip(recorded["all_ids"], predictions, strict=True):
        width, height = prediction["size_wh"]
        instances = Instances(
            boxes=torch.tensor(prediction["boxes"], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(prediction["labels"], dtype=torch.int64) - 1,
            scores=torch.tensor(prediction["scores"], dtype=torch.float32),
            size=(height, width),
        )
        original = instances.resize_to(sizes[image_id]).to_continuous("inclusive")
        found += to_coco_results(original, image_id=image_id, category_ids=category_ids)
    return found


def test_coco_results_match_the_original(recorded):
    found, expected = results(recorded, recorded["predictions"]), recorded["coco_results"]
    assert [(d["image_id"], d["category_id"]) for d in found] == [(d["image_id"], d["category_id"]) for d in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # The original also converts to xywh in float32, but adds 1 after subtracting.
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=3e-5)
        assert ours["score"] == theirs["score"]


def test_coco_metrics_match_the_original(recorded):
    found = coco_metrics(recorded["coco"], results(recorded, recorded["eval_predictions"])).overall
    for name, expected in recorded["eval_bbox"].items():
        expected = float("nan") if expected == -1 else expected  # noqa: PLW2901
        assert found[name] == pytest.approx(expected, abs=1e-9, nan_ok=True)
