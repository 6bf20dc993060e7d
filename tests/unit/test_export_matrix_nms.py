"""Non-maximum suppression in plain tensor operations equals that of torchvision, alone and in exported files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from exports import MASKS, ONE_SIZE, batch_of, small_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fcos
from fcos import ConfigError, Detector
from fcos.export.matrix_nms import matrix_nms


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> list[int]:
    """Return the indices of the boxes of an image that torchvision keeps, class by class, best first."""
    kept = []
    for label in labels.unique():
        members = torch.nonzero(valid & (labels == label)).squeeze(1)
        # Of a Python float, torchvision compares digits that a threshold in float32 has not.
        rounded = float(torch.tensor(threshold))
        kept += members[torchvision.ops.nms(boxes[members], scores[members], rounded)].tolist()
    return sorted(kept, key=lambda i: (-float(scores[i]), i))


def assert_equals_greedy_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, threshold: float
) -> list[list[int]]:
    """Compare the boxes that both keep of every image, and return them."""
    with torch.inference_mode():
        order, counts = matrix_nms(boxes, scores, labels, valid, 3, threshold)
    found = [indices[:count].tolist() for indices, count in zip(order, counts.tolist(), strict=True)]
    assert found == [greedy_nms(*image, threshold) for image in zip(boxes, scores, labels, valid, strict=True)]
    return found


@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 1), (1, 40), (3, 25)]),
    st.sampled_from([0.05, 0.3, 0.5, 0.6, 0.7, 1.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_equals_greedy_nms_class_by_class(seed: int, shape: tuple[int, int], threshold: float, on_grid: bool) -> None:
    """Boxes on a grid have equal scores, and overlaps of exactly the threshold; some have no area."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: float, *sides: int) -> Tensor:
        values = torch.rand(*shape, *sides, generator=generator) * high
        return values.floor() if on_grid else values

    corners = draw(10, 2)
    boxes = torch.cat([corners, corners + draw(8, 2)], dim=2)
    scores = draw(5) / 5
    labels = torch.randint(0, 3, shape, generator=generator)
    valid = torch.rand(shape, generator=generator) < 0.9
    assert_equals_greedy_nms(boxes, scores, labels, valid, threshold)


def test_chain_of_boxes_that_decide_about_each_other() -> None:
    """Only the last of as many steps as there are boxes decides about the last box."""
    x = torch.arange(60.0) * 3
    boxes = torch.stack([x, torch.zeros(60), x + 10, torch.ones(60)], dim=1)[None]
    scores, ones = torch.linspace(1, 0, 60)[None], torch.ones(1, 60, dtype=torch.int64)
    kept = assert_equals_greedy_nms(boxes, scores, ones, ones.bool(), 0.5)
    assert kept == [list(range(0, 60, 2))]


def test_values_of_boxes_that_are_padding_do_not_matter() -> None:
    boxes = torch.tensor([[[0.0, 0, 9, 9], [math.nan] * 4, [0, 0, 9, 8], [-math.inf, 0, math.inf, 9]]])
    scores = torch.tensor([[0.5, math.nan, 0.9, math.inf]])
    labels = torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        order, counts = matrix_nms(boxes, scores, labels, torch.tensor([[True, False, True, False]]), 1, 0.5)
        assert (order[0, :1].tolist(), counts.tolist()) == ([2], [1])
        order, counts = matrix_nms(boxes, scores, labels, torch.zeros(1, 4).bool(), 1, 0.5)
        assert counts.tolist() == [0]


def test_without_suppression_boxes_are_sorted() -> None:
    boxes, labels = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
    with torch.inference_mode():
        order, counts = matrix_nms(boxes, torch.tensor([[0.5, 0.9, 0.5]]), labels, torch.ones(1, 3).bool(), 1, 0.0)
    assert (order.tolist(), counts.tolist()) == ([[1, 0, 2]], [3])


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


BATCH: dict[str, Any] = {"size": (144, 112), "batch": 4}
"""Size of the batch of `assert_detects_the_same`."""


def assert_detects_the_same(path: Path, detector: Detector) -> None:
    images, sizes = batch_of((131, 97), (64, 33), (1, 1), (120, 112))
    pairs = list(zip(fcos.load(path).model.detect(images, sizes), detector.model.detect(images, sizes), strict=True))
    assert [len(found) for found, _ in pairs] == [30, 30, 0, 30]
    for found, expected in pairs:
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)


def test_onnx_file_contains_a_loop_instead_of_the_operator(detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / "model.onnx", nms="matrix")
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert "NonMaxSuppression" not in operators
    assert operators.count("Loop") == 1
    assert {node.domain for node in model.graph.node} == {""}
    assert_detects_the_same(exported.path, detector)


def test_openvino_runs_the_loop(detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / "model.xml", form="openvino", nms="matrix", **BATCH)
    assert_detects_the_same(exported.path, detector)


@pytest.mark.parametrize("options", [BATCH, pytest.param({}, marks=pytest.mark.slow)])
def test_program_contains_operators_of_pytorch_only(
    options: dict[str, Any], detector: Detector, tmp_path: Path
) -> None:
    exported = detector.export(tmp_path / "model.pt2", form="torch_export", nms="matrix", **options)
    modules = torch.export.load(exported.path).graph_module.modules()  # with the parts of the loop
    graphs = [module.graph for module in modules if isinstance(module, torch.fx.GraphModule)]
    assert len(graphs) == 3
    targets: list[Any] = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    spaces = {getattr(target, "namespace", "python") for target in targets}
    assert spaces == {"aten", "higher_order", "python"}
    assert {target.__module__ for target in targets if not hasattr(target, "namespace")} <= {"_operator", "builtins"}
    assert_detects_the_same(exported.path, detector)


@pytest.mark.parametrize("nms", ["matrix", pytest.param("none", marks=pytest.mark.slow)])
def test_proposals_of_two_stages_are_selected_in_this_form(nms: Any, tmp_path: Path) -> None:
    detector = small_detector("rcnn", **(MASKS if nms == "matrix" else {}))
    exported = detector.export(tmp_path / "model.onnx", nms=nms, **ONE_SIZE)
    operators = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert "NonMaxSuppression" not in operators
    assert operators.count("Loop") == (2 if nms == "matrix" else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": False}, r"--nms: expected one of graph, matrix, none, found False"),
        ({"nms": "matrix", "raw": True}, r"--nms matrix: no effect with --raw"),
    ],
)
def test_wrong_values_are_explained(detector: Detector, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detector.export(tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []
