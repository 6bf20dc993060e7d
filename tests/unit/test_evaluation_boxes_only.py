"""Evaluation of detectors with masks and keypoints on data that has only boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectors import tiny_config
from tiny_data import CLASSES, coco_tree, write_coco, write_voc

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.errors import DataError
from fcos.evaluation.coco_metrics import METRICS, metrics_of
from fcos.models import build_model

MASK: dict[str, Any] = {"mask": {"enabled": True, "conv_channels": [8]}}
KEYPOINTS: dict[str, Any] = {"keypoints": {"enabled": True, "conv_channels": [8], "num_keypoints": 2}}


def save_weights(folder: Path, **heads: Any) -> Path:
    """Save an untrained detector with heads, whose names and ids of classes are those of the data."""
    config = tiny_config(name="rcnn", score_threshold=0.0, max_detections=3, **heads)
    model = build_model(config.model, num_classes=len(CLASSES), pretrained=False)
    ids = [7 - i for i in range(len(CLASSES))]
    save_checkpoint(folder / "best.pt", model=model, config=config, class_names=CLASSES, category_ids=ids)
    return folder / "best.pt"


def tree_with_masks() -> dict[str, Any]:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    return tree


@pytest.mark.parametrize("heads", [MASK, KEYPOINTS, MASK | KEYPOINTS], ids=["masks", "keypoints", "both"])
@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_metrics_of_boxes_are_computed_with_a_note(
    heads: dict[str, Any], write: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, data = save_weights(tmp_path, **heads), write(tmp_path / "data", split="val")
    evaluation = fcos.evaluate(weights, f"data={data}")
    assert tuple(evaluation.metrics) == METRICS
    assert evaluation.detections
    missing = [{"mask": "masks", "keypoints": "keypoints"}[name] for name in heads]
    notes = [f"the val split has no {name}, so the metrics of {name} are not computed" for name in missing]
    assert [text for text in caplog.messages if "are not computed" in text] == notes


def test_metrics_of_the_masks_that_the_data_has_are_computed(tmp_path: Path) -> None:
    weights = save_weights(tmp_path, **MASK, **KEYPOINTS)
    data = write_coco(tmp_path / "data", tree_with_masks(), split="val")
    assert tuple(fcos.evaluate(weights, f"data={data}").metrics) == metrics_of(["boxes", "masks"])


@pytest.mark.parametrize("heads", [{}, MASK], ids=["boxes", "masks"])
def test_boxes_of_masks_need_masks(heads: dict[str, Any], tmp_path: Path) -> None:
    weights, data = save_weights(tmp_path, **heads), write_coco(tmp_path / "data", split="val")
    with pytest.raises(DataError, match=r"data\.boxes=masks needs the masks .* or remove data\.boxes=masks"):
        fcos.evaluate(weights, f"data={data}", "data.boxes=masks")


def test_boxes_are_evaluated_on_partly_masked_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, tree = save_weights(tmp_path, **MASK), tree_with_masks()
    del tree["annotations"][0]["segmentation"]
    data = write_coco(tmp_path / "data", tree, split="val")
    with pytest.raises(DataError, match=r"(?s)has no mask .*data\.masks=false evaluates only the boxes"):
        fcos.evaluate(weights, f"data={data}")
    evaluation = fcos.evaluate(weights, f"data={data}", "data.masks=false")
    assert tuple(evaluation.metrics) == METRICS
    assert "data.masks=false, so the metrics of masks are not computed" in caplog.messages


def test_no_note_about_keypoints_that_the_detector_does_not_predict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_coco(tmp_path / "data", split="val")
    evaluation = fcos.evaluate(save_weights(tmp_path), f"data={data}", "data.keypoints=true")
    assert tuple(evaluation.metrics) == METRICS
    assert not [text for text in caplog.messages if "are not computed" in text]


@pytest.mark.parametrize(
    ("heads", "options", "messages"),
    [
        ({}, "data.masks=true", ["data.masks: no effect, because the detector predicts no masks"]),
        (
            {},
            "data.keypoints=true eval.keypoint_sigmas=[0.1]",
            ["data.keypoints, eval.keypoint_sigmas: no effect, because the detector predicts no keypoints"],
        ),
        (
            MASK,
            "eval.keypoint_sigmas=[0.1,0.1]",
            ["eval.keypoint_sigmas: no effect, because the detector predicts no keypoints"],
        ),
        (KEYPOINTS, "eval.keypoint_sigmas=[0.1,0.1]", []),
        ({}, "data.boxes=masks", []),
        ({}, "eval.scales_flip=true", ["eval.scales_flip=true: no effect, because it needs eval.scales"]),
        ({}, "eval.scales=[64] eval.scales_flip=true eval.scales_max_side=64", []),
    ],
)
def test_options_without_effect_on_the_evaluation_are_named(
    heads: dict[str, Any], options: str, messages: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, data = save_weights(tmp_path, **heads), write_coco(tmp_path / "data", tree_with_masks(), split="val")
    fcos.evaluate(weights, f"data={data}", *options.split())
    assert [text for text in caplog.messages if "no effect" in text] == messages


def test_training_needs_the_masks(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    with pytest.raises(DataError, match=r"data\.masks=true needs the masks of the objects"):
        fcos.train("mask_rcnn_mnv2_small", f"data={data}", f"output_dir={tmp_path / 'run'}", "device=cpu")
    assert not (tmp_path / "run").exists()
