"""Box geometry, non-maximum suppression, maximum number of detections."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from torch import Tensor

from fcos import boxes as module
from fcos.boxes import area, class_wise_nms, clip, limit_detections
from fcos.choices import BoxConvention

CONVENTIONS: list[BoxConvention] = ["continuous", "inclusive"]


def random_boxes(count: int, *, extent: float = 100.0, whole: bool = False) -> Tensor:
    """Return boxes of which some overlap. With `whole` pixels, many overlaps are equal ratios of small integers."""
    corner, size = torch.rand(count, 2) * extent, torch.rand(count, 2) * extent * 0.4 + 1
    boxes = torch.cat([corner, corner + size], dim=1)
    return boxes.round() if whole else boxes


# --------------------------------------------------------------------------------------------------------- geometry


def test_one_pixel_has_area_one_in_both_conventions() -> None:
    assert area(torch.tensor([[3.0, 4.0, 4.0, 5.0]])).tolist() == [1.0]
    assert area(torch.tensor([[3.0, 4.0, 3.0, 4.0]]), convention="inclusive").tolist() == [1.0]


@pytest.mark.parametrize(("convention", "end"), [("continuous", (50.0, 30.0)), ("inclusive", (49.0, 29.0))])
def test_clip_limits_boxes_to_the_image(convention: BoxConvention, end: tuple[float, float]) -> None:
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0], [10.0, 11.0, 12.0, 13.0], [70.0, 80.0, 90.0, 95.0]])
    clipped = clip(boxes, (30, 50), convention=convention)
    assert clipped[0].tolist() == [0.0, 0.0, *end]
    assert clipped[1].tolist() == boxes[1].tolist()
    assert clipped[2].tolist() == [*end, *end]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_clip_of_infinite_boxes_is_finite(convention: BoxConvention) -> None:
    infinite = torch.tensor([[-torch.inf, -torch.inf, torch.inf, torch.inf]])
    assert clip(infinite, (30, 50), convention=convention).isfinite().all()


def test_clip_and_area_of_no_boxes_are_empty() -> None:
    none = torch.zeros(0, 4)
    assert clip(none, (5, 5)).shape == (0, 4)
    assert area(none).shape == (0,)


# ------------------------------------------------------------------------------------------ non-maximum suppression


@pytest.fixture(params=["class by class", "in one call"])
def both_implementations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with both implementations of non-maximum suppression, on the CPU."""
    monkeypatch.setattr(module, "GPU_TYPES", {"cpu"} if request.param == "in one call" else set())


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    """Apply torchvision's non-maximum suppression to each class separately."""
    kept = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        kept += members[torchvision.ops.nms(boxes[members], scores[members], threshold)].tolist()
    return sorted(kept, key=lambda i: -scores[i].item())


@pytest.mark.usefixtures("both_implementations")
@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("extent", [10.0, 100.0, 20000.0])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 1.0])
def test_nms_matches_torchvision_per_class(classes: int, extent: float, threshold: float) -> None:
    boxes, scores, labels = random_boxes(300, extent=extent), torch.rand(300), torch.randint(classes, (300,))
    assert class_wise_nms(boxes, scores, labels, threshold).tolist() == nms_per_class(boxes, scores, labels, threshold)


@pytest.mark.usefixtures("both_implementations")
def test_inclusive_nms_matches_nms_of_boxes_one_pixel_larger() -> None:
    boxes, scores, labels = random_boxes(300), torch.rand(300), torch.randint(3, (300,))
    expected = nms_per_class(boxes + torch.tensor([0.0, 0.0, 1.0, 1.0]), scores, labels, 0.5)
    assert class_wise_nms(boxes, scores, labels, 0.5, convention="inclusive").tolist() == expected


@pytest.mark.usefixtures("both_implementations")
@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("label", [0, 79])
def test_nms_keeps_boxes_with_iou_equal_to_the_threshold(tenths: int, label: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, tenths], [0.0, 0.0, 10.0, tenths + 0.01]])
    labels = torch.full((3,), label)
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert class_wise_nms(boxes[:2], scores[:2], labels[:2], tenths / 10).tolist() == [0, 1]
    assert class_wise_nms(boxes[[0, 2]], scores[:2], labels[:2], tenths / 10).tolist() == [0]


@pytest.mark.usefixtures("both_implementations")
@pytest.mark.parametrize("far", [20000.1, 20000.3, 33333.337, 12345.678])
def test_distant_box_of_another_class_does_not_affect_nms_precision(far: float) -> None:
    """An offset that separates the classes must not round the coordinates of small boxes."""
    far_box, labels = [far, far, far + 0.7, far + 0.3], torch.tensor([79, 79, 0])
    half = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], far_box])
    more = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.001], far_box])
    assert class_wise_nms(half, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 1, 2]
    assert class_wise_nms(more, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 2]


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nms_implementations_agree_on_integer_boxes(
    threshold: float, convention: BoxConvention, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, scores = random_boxes(500, extent=12, whole=True), torch.rand(500).round(decimals=1)
    labels = torch.randint(80, (500,)) // 8 * 8
    by_class = class_wise_nms(boxes, scores, labels, threshold, convention=convention)
    monkeypatch.setattr(module, "GPU_TYPES", {"cpu"})
    in_one_call = class_wise_nms(boxes, scores, labels, threshold, convention=convention)
    assert by_class.tolist() == in_one_call.tolist()


@pytest.mark.usefixtures("both_implementations")
def test_nms_keeps_equal_boxes_of_different_classes() -> None:
    boxes = torch.tensor([[-3.0, 5.0, 40000.0, 30000.0]]).repeat(80, 1)
    assert len(class_wise_nms(boxes, torch.rand(80), torch.arange(80), 0.01)) == 80


@pytest.mark.usefixtures("both_implementations")
def test_nms_keeps_the_first_of_equal_scores() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(50, 1)
    labels = torch.tensor([1, 0]).repeat(25)
    assert class_wise_nms(boxes, torch.full((50,), 0.3), labels, 0.5).tolist() == [0, 1]


@pytest.mark.usefixtures("both_implementations")
def test_suppressed_box_does_not_suppress_others() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 4.0, 10.0, 14.0], [0.0, 8.0, 10.0, 18.0]])
    assert class_wise_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long(), 0.3).tolist() == [0, 2]


@pytest.mark.usefixtures("both_implementations")
def test_nms_of_no_boxes_returns_no_indices() -> None:
    kept = class_wise_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.usefixtures("both_implementations")
@pytest.mark.parametrize("limit", [1, 3, 20, 1000])
@pytest.mark.parametrize("classes", [1, 3, 200])
@pytest.mark.parametrize("extent", [10.0, 1000.0])
def test_limited_nms_keeps_the_same_best_boxes(limit: int, classes: int, extent: float) -> None:
    boxes, scores, labels = random_boxes(700, extent=extent), torch.rand(700), torch.randint(classes, (700,))
    everything = class_wise_nms(boxes, scores, labels, 0.3)
    limited = class_wise_nms(boxes, scores, labels, 0.3, limit=limit)
    assert limited.tolist() == everything[: len(limited)].tolist()
    assert len(limited) >= min(limit, len(everything))


@pytest.mark.usefixtures("both_implementations")
def test_limited_nms_keeps_every_box_that_ties_with_the_last() -> None:
    boxes = random_boxes(100, extent=1.0) + 50 * torch.arange(100.0)[:, None]
    scores = torch.tensor([0.9, 0.8] + [0.5] * 50 + [0.4] * 48)
    assert len(class_wise_nms(boxes, scores, torch.zeros(100).long(), 0.5, limit=3)) >= 52


@pytest.mark.usefixtures("both_implementations")
@pytest.mark.parametrize("empty", [0.0, 1.0])
def test_nms_of_many_classes_matches_torchvision_for_boxes_without_area(empty: float) -> None:
    boxes, scores, labels = random_boxes(300, extent=3, whole=True), torch.rand(300), torch.randint(40, (300,))
    boxes[::2, 2] = boxes[::2, 0] + empty
    assert class_wise_nms(boxes, scores, labels, 0.5).tolist() == nms_per_class(boxes, scores, labels, 0.5)


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_nonpositive_nms_threshold_only_sorts_by_score(threshold: float) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(3, 1)
    assert class_wise_nms(boxes, torch.tensor([0.2, 0.9, 0.2]), torch.zeros(3).long(), threshold).tolist() == [1, 0, 2]


# --------------------------------------------------------------------------------------------------- maximum number


@pytest.mark.parametrize("limit", [0, -1, 5, 6])
def test_disabled_or_large_limit_keeps_all_detections(limit: int) -> None:
    assert limit_detections(torch.rand(5), limit).tolist() == [0, 1, 2, 3, 4]


def test_limit_keeps_the_highest_scores_in_input_order() -> None:
    assert limit_detections(torch.tensor([0.1, 0.9, 0.3, 0.8]), 2).tolist() == [1, 3]


def test_all_ties_at_the_limit_are_kept_only_with_keep_ties() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.4])
    assert limit_detections(scores, 2, keep_ties=True).tolist() == [0, 1, 2, 3]
    assert limit_detections(scores, 2).tolist() == [0, 1]


def test_limit_of_no_detections_returns_no_indices() -> None:
    assert limit_detections(torch.zeros(0), 3).shape == (0,)
