"""Same detections as detectron2's and mmdetection's RetinaNet and R-CNN, which were recorded from their own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recorded_detectors import NAMES, Recorded, detect, detector
from torch import Tensor

from fcos.config.overrides import validate
from fcos.interop.checkpoints import from_content
from fcos.models import build_model
from fcos.structures import Instances


@pytest.fixture(scope="module", params=NAMES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def match(found: Instances, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return the index of our detection for each recorded one, since nearly equal scores may swap places."""
    distance = (found.boxes[:, None] - boxes).abs().amax(dim=2) + 1000.0 * (found.labels[:, None] != labels)
    index = distance.argmin(dim=0)
    assert sorted(index.tolist()) == list(range(len(found)))
    return index


def test_detections_match_the_source_project(recorded: Recorded) -> None:
    for i, found in enumerate(detect(detector(recorded.checkpoint()))):
        expected = {
            key.partition("/")[2]: torch.from_numpy(array)
            for key, array in recorded.numbers.items()
            if key.startswith(f"det{i}/")
        }
        assert len(found) == len(expected["scores"]) > 5
        order = match(found, expected["boxes"], expected["labels"])
        torch.testing.assert_close(found.boxes[order], expected["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(found.scores[order], expected["scores"], rtol=0, atol=1e-5)
        assert ("grids" in expected, "keypoints" in expected) == (
            found.mask_grids is not None,
            found.keypoints is not None,
        )
        if found.mask_grids is not None:
            torch.testing.assert_close(found.mask_grids[order], expected["grids"], rtol=0, atol=1e-4)
            check_masks(found[order], expected["masks"].numpy())
        if found.keypoints is not None:
            points = found.keypoints[order, :, :2]
            torch.testing.assert_close(points, expected["keypoints"][..., :2], rtol=0, atol=1e-2)


def check_masks(found: Instances, packed: np.ndarray) -> None:
    """Compare masks with the recorded ones, except at pixels whose probability is within 1e-4 of the threshold."""
    height, width = found.size
    expected = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    probabilities = found.mask_probabilities()
    assert probabilities is not None
    for ours, theirs in zip(probabilities, expected, strict=True):
        assert theirs.shape == (height, width)
        assert theirs.any()
        differs = (ours.numpy() > 0.5) != theirs
        assert not differs[np.abs(ours.numpy() - 0.5) > 1e-4].any()


# --------------------------------------------------------------------------------------------------- tensors, settings


def test_all_tensors_are_converted(recorded: Recorded) -> None:
    checkpoint = from_content(recorded.content(recorded.state()), where="x", class_names=recorded.class_names())
    config = validate(checkpoint.config, where="x")
    model = build_model(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith("pixel_")}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    counters = {name for name in found if name.endswith("num_batches_tracked")}
    assert {name: shape for name, shape in found.items() if name not in counters - ours.keys()} == ours
    assert set(checkpoint.original_names.values()) == set(recorded.shapes)


COUNTS = {
    "detectron2__keypoint_rcnn_R_50_FPN_1x": 313,
    "detectron2__mask_rcnn_R_50_C4_1x": 279,
    "detectron2__mask_rcnn_R_50_FPN_1x": 307,
    "detectron2__mask_rcnn_R_50_FPN_1x_cls_agnostic": 307,
    "detectron2__mask_rcnn_R_50_FPN_3x_gn": 223,
    "detectron2__retinanet_R_50_FPN_1x": 301,
    "mmdetection__mask-rcnn_r50-caffe-c4_1x_coco": 332,
    "mmdetection__mask-rcnn_r50_fpn_1x_coco": 360,
    "mmdetection__retinanet_r50_fpn_1x_coco": 354,
}


def test_recordings_have_the_names_of_the_source_projects() -> None:
    assert {name: len(Recorded(name).shapes) for name in NAMES} == COUNTS
