"""Conversion of detections to COCO results, and the metrics, with the original's inclusive boxes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flat_annotations import annotations_of

from fcos.evaluation.coco_metrics import coco_metrics, to_coco_results
from fcos.evaluation.proposal_recall import proposal_recall
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


def test_proposal_recall_matches_the_original(recorded):
    data = recorded["coco"]
    images = sorted(data["images"], key=lambda image: recorded["all_ids"].index(image["id"]))
    objects = [[a for a in data["annotations"] if a["image_id"] == image["id"]] for image in images]
    boxes = [
        [(*a["bbox"][:2], *np.add(a["bbox"][:2], a["bbox"][2:]), 0, a["iscrowd"]) for a in of_image]
        for of_image in objects
    ]
    annotations = replace(
        annotations_of(boxes, [(image["height"], image["width"]) for image in images]),
        image_ids=np.array(recorded["all_ids"]),
        areas=np.array([a["area"] for of_image in objects for a in of_image], dtype=np.float32),
    )
    cases = [(*key.split("@"), value) for key, value in recorded["proposal_average_recall_and_number_of_boxes"].items()]
    limits = {int(limit) for _, limit, _ in cases}
    found = proposal_recall(annotations, results(recorded, recorded["eval_predictions"]), limits=sorted(limits))
    for size, limit, value in cases:
        suffix = {"all": "", "small": "s", "medium": "m", "large": "l"}[size]
        expected = float("nan") if isinstance(value, str) else value[0]  # the original raises an error without objects
        assert found[f"AR{suffix}{limit}_proposals"] == pytest.approx(expected, abs=1e-6, nan_ok=True), (size, limit)
