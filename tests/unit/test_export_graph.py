"""The tensor-only form of the detectors equals `detect`, and compilers capture it as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import tiny_config, tiny_two_stage
from exports import batch_of, small_detector

from fcos import ConfigError, Instances
from fcos.export.graph import DetectionGraph
from fcos.models.padded import Padded, nms_operator

SIZES = ((64, 33), (1, 1), (50, 80))
"""Odd sizes, and an image without a location inside."""
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("fcos", {}),
    ("fcos", {"score": "product", "threshold_on": "score", "top_k_on": "class"}),
    ("fcos", {"nms_threshold": 0.0}),
    ("fcos", {"max_detections": 0}),
    ("fcos", {"max_detections": 10_000}),
    ("fcos", {"clip_after_nms": True}),
    ("fcos", {"detect_in_padding": True}),
    ("fcos", {"keep_empty_boxes": True, "pre_nms_top_k": 10}),
    ("fcos", {"box_convention": "inclusive"}),
    ("fcos", {"score_threshold": 0.99}),
    ("fcos", {"location": "corner", "head": {"num_convs": 1, "regression": "relu_stride"}}),
    ("retinanet", {}),
    ("retinanet", {"max_detections": -1, "nms_threshold": 0.3}),
    ("retinanet", {"box_convention": "inclusive"}),
    ("rpn", {}),
    ("rpn", {"proposals": {"pre_nms_top_k": 40, "post_nms_top_k": 40, "max_proposals": 10_000}}),
    ("rpn", {"proposals": {"post_nms_top_k": 5, "min_size": 8, "nms_threshold": 0.0}}),
    ("rpn", {"box_convention": "inclusive"}),
    ("rcnn", {}),
    ("rcnn", {"box": {"linear_channels": 32, "class_agnostic": True}, "min_size": 6}),
    ("rcnn", {"pre_nms_top_k": 20, "box_convention": "inclusive"}),
    ("rcnn", {"empty_boxes": "keep", "pooling_aligned": True, "level_epsilon": 1e-8}),
]


def to_instances(outputs: tuple[torch.Tensor, ...], sizes: torch.Tensor) -> list[Instances]:
    boxes, scores, labels, counts = outputs
    valid = torch.arange(scores.shape[1]) < counts[:, None]
    return Padded(boxes, scores, labels, valid).to_instances(sizes)


def assert_equal(found: list[Instances], expected: list[Instances]) -> None:
    assert [len(image) for image in found] == [len(image) for image in expected]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)  # sigmoids of other vector lengths
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else str(value)
)
def test_graph_equals_detect_for_every_option(name: str, options: dict[str, Any]) -> None:
    detector = small_detector(name, **options)
    images, sizes = batch_of(*SIZES)
    with torch.inference_mode():
        outputs = DetectionGraph(detector.model)(images, sizes)
    expected = detector.model.detect(images, sizes)
    assert_equal(to_instances(outputs, sizes), expected)
    assert sum(map(len, expected)) > 0


def test_padding_of_the_outputs_has_fixed_values() -> None:
    detector = small_detector(max_detections=50)
    with torch.inference_mode():
        boxes, scores, labels, counts = DetectionGraph(detector.model)(*batch_of(*SIZES))
    assert counts.tolist()[1] == 0
    assert (boxes[1] == 0).all()
    assert (scores[1] == 0).all()
    assert (labels[1] == -1).all()


def test_graph_without_nms_returns_the_candidates() -> None:
    detector = small_detector()
    images, sizes = batch_of(*SIZES)
    with torch.inference_mode():
        boxes, scores, labels, valid = DetectionGraph(detector.model, nms=False)(images, sizes)
    expected = detector.model.candidates(images, sizes)
    assert_equal(Padded(boxes, scores, labels, valid).to_instances(sizes), expected)


def test_score_threshold_can_be_given_with_the_images() -> None:
    detector = small_detector()
    images, sizes = batch_of(*SIZES)
    graph = DetectionGraph(detector.model)
    with torch.inference_mode():
        assert graph(images, sizes, torch.tensor(1.0))[3].tolist() == [0, 0, 0]
        assert graph(images, sizes)[3].tolist() == [30, 0, 30]


@pytest.mark.parametrize("name", ["fcos", "retinanet", "rpn", "rcnn"])
def test_graph_compiles_without_graph_breaks(name: str) -> None:
    detector = small_detector(name)
    images, sizes = batch_of(*SIZES)
    compiled = torch.compile(DetectionGraph(detector.model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_equal(to_instances(compiled(images, sizes), sizes), detector.model.detect(images, sizes))


def test_operator_has_consistent_shapes_and_aliases() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 9.0], [4.0, 4.0, 9.0, 9.0]]])
    arguments = (boxes, torch.tensor([[0.5, 0.5, 0.9]]), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3).bool())
    order, counts = nms_operator(*arguments, 1, 0.6)
    assert (order.tolist(), counts.tolist()) == ([[2, 0, 0]], [2])  # equal scores keep their order
    torch.library.opcheck(nms_operator, (*arguments, 1, 0.6), test_utils=("test_schema", "test_faketensor"))


def test_masks_and_keypoints_cannot_be_exported() -> None:
    model = tiny_two_stage(tiny_config(name="rcnn", mask={"enabled": True, "conv_channels": [16]}))
    with pytest.raises(ConfigError, match=r"R-CNN with model\.mask: masks and keypoints cannot be exported"):
        DetectionGraph(model)


def test_boxes_removed_after_suppression_cannot_be_exported() -> None:
    model = tiny_two_stage(tiny_config(name="rcnn", empty_boxes="remove_last"))
    with pytest.raises(ConfigError, match=r"model\.empty_boxes=remove_last cannot be exported; use .*=remove$"):
        DetectionGraph(model)
