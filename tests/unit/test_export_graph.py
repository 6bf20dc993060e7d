"""The tensor-only form of the detectors equals `detect`, and compilers capture it as a whole."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from exports import C4, KEYPOINTS, MASKS, batch_of, small_detector
from small_backbones import one_block_per_stage

from fcos import ConfigError, Instances
from fcos.export.graph import DetectionGraph, capture
from fcos.export.metadata import FixedSizes
from fcos.export.outputs import to_instances
from fcos.models.keypoint_head import keypoint_operator
from fcos.models.padded import nms_operator

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
    ("fcos", {"fpn": {"channels": 64, "separable": True}, "head": {"num_convs": 1, "norm": "bn", "separable": True}}),
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
    ("rcnn", {"empty_boxes": "remove_last", **MASKS}),
    ("rcnn", {"box_convention": "inclusive", **KEYPOINTS}),
    ("rcnn", {**MASKS, **KEYPOINTS}),
    ("rcnn", {"fcos": {"enabled": True, "size_ranges": [[-1, 32], [32, None]], "max_proposals": 50}}),
    ("rcnn", C4),
]


def assert_equal(found: list[Instances], expected: list[Instances]) -> None:
    assert [len(image) for image in found] == [len(image) for image in expected]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)  # sigmoids of other vector lengths
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.mask_grids, b.mask_grids, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.keypoints, b.keypoints, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else str(value)
)
def test_graph_equals_detect_for_every_option(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_block_per_stage(monkeypatch)  # of C4
    detector = small_detector(name, **options)
    images, sizes = batch_of(*SIZES)
    with torch.inference_mode():
        outputs = DetectionGraph(detector.model)(images, sizes)
    expected = detector.model.detect(images, sizes)
    assert_equal(to_instances(outputs, sizes), expected)
    assert sum(map(len, expected)) > 0


def test_networks_whose_padding_depends_on_the_size_are_captured() -> None:
    """timm's "SAME" padding is computed from the sides of every map."""
    detector = small_detector(backbone={"name": "timm/tf_mobilenetv3_small_minimal_100", "weights": None})
    program = capture(DetectionGraph(detector.model), FixedSizes(), divisor=16, threshold_input=False).program.module()
    for shape in ((48, 80), (64, 112)):
        images, sizes = batch_of(shape, (33, 20))
        expected = detector.model.detect(images, sizes)
        assert_equal(to_instances(program(images, sizes), sizes), expected)
        assert min(map(len, expected)) > 0


def test_padding_of_the_outputs_has_fixed_values() -> None:
    detector = small_detector("rcnn", **MASKS, **KEYPOINTS)
    with torch.inference_mode():
        outputs = DetectionGraph(detector.model)(*batch_of(*SIZES))
    assert outputs["counts"].tolist()[1] == 0
    for name in ("boxes", "scores", "masks", "keypoints"):
        assert (outputs[name][1] == 0).all()
    assert (outputs["labels"][1] == -1).all()


def test_graph_without_nms_returns_the_candidates() -> None:
    detector = small_detector()
    images, sizes = batch_of(*SIZES)
    with torch.inference_mode():
        outputs = DetectionGraph(detector.model, content="candidates")(images, sizes)
    assert_equal(to_instances(outputs, sizes), detector.model.candidates(images, sizes))


@pytest.mark.parametrize("name", ["fcos", "retinanet", "rpn"])
def test_raw_outputs_are_those_of_the_head(name: str) -> None:
    detector = small_detector(name)
    images, sizes = batch_of(*SIZES)
    with torch.inference_mode():
        outputs = DetectionGraph(detector.model, content="raw")(images, sizes)
        expected = detector.model(images, sizes)
    assert list(outputs)[:3] == ["logits_0", "logits_1", f"{'ltrb' if name == 'fcos' else 'offsets'}_0"]
    assert all(torch.equal(a, b) for a, b in zip(outputs.values(), chain(*expected), strict=True))


def test_score_threshold_can_be_given_with_the_images() -> None:
    detector = small_detector()
    images, sizes = batch_of(*SIZES)
    graph = DetectionGraph(detector.model)
    with torch.inference_mode():
        assert graph(images, sizes, torch.tensor(1.0))["counts"].tolist() == [0, 0, 0]
        assert graph(images, sizes)["counts"].tolist() == [30, 0, 30]


@pytest.mark.parametrize(
    ("name", "options"),
    [("fcos", {}), ("retinanet", {}), ("rpn", {}), ("rcnn", {**MASKS, **KEYPOINTS})],
    ids=["fcos", "retinanet", "rpn", "rcnn"],
)
def test_graph_compiles_without_graph_breaks(name: str, options: dict[str, Any]) -> None:
    detector = small_detector(name, **options)
    images, sizes = batch_of(*SIZES)
    compiled = torch.compile(DetectionGraph(detector.model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_equal(to_instances(compiled(images, sizes), sizes), detector.model.detect(images, sizes))


def test_operator_has_consistent_shapes_and_aliases() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 9.0], [4.0, 4.0, 9.0, 9.0]]])
    arguments = (boxes, torch.tensor([[0.5, 0.5, 0.9]]), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3).bool())
    order, counts = nms_operator(*arguments, 1, 0.6)
    assert (order.tolist(), counts.tolist()) == ([[2, 0, 0]], [2])  # equal scores keep their order
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(nms_operator, (*arguments, 1, 0.6), test_utils=tests)
    torch.library.opcheck(keypoint_operator, (torch.rand(3, 2, 8, 8), arguments[0][0]), test_utils=tests)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("candidates", r"--nms none: masks and keypoints are computed for the detections"),
        ("raw", "--raw: two-stage detectors cannot be exported without selecting proposals"),
    ],
)
def test_content_that_a_detector_has_not_is_rejected(content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionGraph(small_detector("rcnn", **MASKS, **KEYPOINTS).model, content=content)
